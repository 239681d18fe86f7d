package schedule

import "time"

// PaceConfig holds what does not change of a link.
type PaceConfig struct {
	Silence time.Duration // after so long without news either way the link is closed
	Life    time.Duration // after so long it is closed anyway, a lazy one sooner; 0: never
}

const (
	// reportSmall and reportLarge are how long a replica collects what it learns before it reports its
	// vectors over a link: in a cluster whose replicas all have links with one another, and in a larger one.
	reportSmall = 25 * time.Millisecond
	reportLarge = 200 * time.Millisecond

	// requestShare is the part of a report's delay that news reported by a peer may take to come another
	// way, before they are requested of that peer.
	requestShare = 2

	// lazyShare is the part of Life after which a lazy link is closed. That makes no news late, and the link that
	// takes its place leads somewhere else, so that no partition of the links lasts.
	lazyShare = 5

	// pushShare is how many times as long as pushes take the next one waits. So pushes batch by
	// themselves under load, and take a bounded part of a processor. One that took longer than others
	// counts for a part of the difference: it was more likely kept waiting than busy.
	pushShare   = 4
	pushAverage = 8

	// pushEach is how long the next push waits for each version of one, and pushMost how long at most. Under as
	// many writes as the store takes, fewer pushes of more versions leave it more time for writes.
	pushEach = 25 * time.Microsecond
	pushMost = 20 * time.Millisecond
)

// Action is what is to be done over a link.
type Action int

const (
	Nothing Action = iota
	Push           // send what the peer lacks
	Request        // ask the peer for what it has reported and this replica lacks
	Report         // report the vectors
	Leave          // close the link
)

// Pace decides when news goes out over a link, a connection that stays open while there is news. News
// is pushed at once where the peer wants it so, and reported elsewhere: links on which pushes brought
// something first are eager, links on which they came too late are lazy (Leitão, Pereira and
// Rodrigues, Epidemic broadcast trees, 2007). A link is eager or lazy both ways, so the eager ones come down
// to a tree that serves every writer. One goroutine uses it at a time.
type Pace struct {
	PaceConfig

	lazy      bool          // the peer gets reports of news, and what it asks for
	push      bool          // there may be something to push
	report    time.Time     // vectors are due; zero: they are not
	request   time.Time     // news that the peer has is asked for; zero: none is missing
	notBefore time.Time     // no push begins before
	takes     time.Duration // that pushes take
	news      time.Time     // the last that there was here, or that came
	end       time.Time     // of its life; zero: none
	lazyEnd   time.Time     // the same of a lazy link
}

// NewPace returns the pace of a link that was made now. A number drawn from 0 to 1 spreads its life.
func NewPace(c PaceConfig, now time.Time, drawn float64) *Pace {
	p := &Pace{PaceConfig: c, news: now}
	if c.Life > 0 {
		p.end, p.lazyEnd = now.Add(jitter(c.Life, drawn)), now.Add(time.Duration((0.5+drawn)*float64(c.Life)/lazyShare))
	}
	return p
}

// LocalChange notes a write of this replica. small says that all replicas have links with one another:
// then whoever writes tells all of them by itself.
func (p *Pace) LocalChange(now time.Time, small bool) { p.changed(now, small, small) }

// RemoteChange notes that another replica's write has arrived.
func (p *Pace) RemoteChange(now time.Time, small bool) { p.changed(now, small, false) }

func (p *Pace) changed(now time.Time, small, always bool) {
	p.news = now
	p.push = p.push || always || !p.lazy
	if at := now.Add(reportDelay(small)); p.report.IsZero() || at.Before(p.report) {
		p.report = at
	}
}

func reportDelay(small bool) time.Duration {
	if small {
		return reportSmall
	}
	return reportLarge
}

// Pushing notes that a push begins, of all that there is now. It reports the vectors as well.
func (p *Pace) Pushing() { p.push, p.report = false, time.Time{} }

// Pushed notes that a push of some versions went out, and how long making and writing it took.
func (p *Pace) Pushed(now time.Time, took time.Duration, versions int) {
	if p.takes += (took - p.takes) / pushAverage; p.takes > took {
		p.takes = took
	}
	p.notBefore = now.Add(max(pushShare*p.takes, min(time.Duration(versions)*pushEach, pushMost)))
}

// Reported notes that the vectors went out without a push.
func (p *Pace) Reported() { p.report = time.Time{} }

// NothingToPush notes that the peer was found to have everything already.
func (p *Pace) NothingToPush() { p.push = false }

// Took notes a push of the peer.
func (p *Pace) Took(now time.Time) { p.news = now }

// Heard notes vectors of the peer: behind says that it covers something that is missing here.
func (p *Pace) Heard(now time.Time, behind, small bool) {
	switch {
	case !behind:
		p.request = time.Time{}
	case p.request.IsZero():
		p.request = now.Add(reportDelay(small) / requestShare)
	}
}

// Coming notes that news which the peer has is on its way from elsewhere: it is given as much time again.
func (p *Pace) Coming(now time.Time, small bool) {
	p.request = now.Add(reportDelay(small) / requestShare)
}

// Requested notes that the peer was asked for what is missing here, and hears of news at once as well.
func (p *Pace) Requested() { p.request, p.lazy = time.Time{}, false }

// Asked notes that the peer asks for what it lacks, and for news at once from now on.
func (p *Pace) Asked() { p.lazy, p.push = false, true }

// Spare notes that what was pushed, here or by the peer, had come another way before.
func (p *Pace) Spare() { p.lazy = true }

// PushNow has a push go out at once, though nothing may have changed: somebody waits for a report of the peer.
func (p *Pace) PushNow() { p.push = true }

// Lazy reports whether news of others are not pushed.
func (p *Pace) Lazy() bool { return p.lazy }

// Due returns what is to be done now.
func (p *Pace) Due(now time.Time) Action {
	due := func(at time.Time) bool { return !at.IsZero() && !now.Before(at) }
	switch {
	case p.push && !now.Before(p.notBefore):
		return Push
	case due(p.request):
		return Request
	case due(p.report):
		return Report
	case due(p.life()) || !now.Before(p.news.Add(p.Silence)):
		return Leave
	}
	return Nothing
}

// life returns when the link is closed though there is news; zero: never.
func (p *Pace) life() time.Time {
	if p.lazy {
		return p.lazyEnd
	}
	return p.end
}

// Next returns when there will be something to do, if nothing happens before.
func (p *Pace) Next() time.Time {
	next := p.news.Add(p.Silence)
	for _, at := range []time.Time{p.request, p.report, p.life()} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	if p.push && p.notBefore.Before(next) {
		next = p.notBefore
	}
	return next
}
