package replicator

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/link"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// linkLife is how long a link lasts, about, while there is always news: then it is made again with the
// same peer or another, under the secrets and certificates of then.
const linkLife = 5 * time.Minute

// links are the live sessions of a replica.
type links struct {
	list   atomic.Pointer[[]*liveLink] // replaced, never changed
	small  atomic.Bool                 // all replicas that answer may have links with one another
	enough atomic.Bool                 // the links carry changes, and no rounds need to

	mu sync.Mutex // held where list is replaced
}

func (ls *links) all() []*liveLink {
	if list := ls.list.Load(); list != nil {
		return *list
	}
	return nil
}

// Small reports whether all replicas that answer may have links with one another.
func (ls *links) Small() bool { return ls.small.Load() }

// Receiving reports whether news is being received over a link.
func (ls *links) Receiving() bool {
	return slices.ContainsFunc(ls.all(), func(l *liveLink) bool { return l.receiving.Load() })
}

// Linked reports whether there is a link with a peer.
func (ls *links) Linked(o causal.Origin) bool { return ls.with(o) != nil }

// with returns the link with a peer, or nil.
func (ls *links) with(o causal.Origin) *liveLink {
	for _, l := range ls.all() {
		if l.origin == o {
			return l
		}
	}
	return nil
}

// changed notes a commit. The queue's slot is held.
func (ls *links) changed(local bool) {
	for _, l := range ls.all() {
		news := &l.remote
		if local {
			news = &l.local
		}
		if !news.Swap(true) { // else it has been woken, and has not looked yet
			l.wake.Set()
		}
	}
}

// ask has peers report what they have on disk, but for some, and returns those that were asked.
func (ls *links) ask(but map[causal.Origin]bool) map[causal.Origin]bool {
	asked := map[causal.Origin]bool{}
	for _, l := range ls.all() {
		if o := l.origin; !but[o] {
			asked[o] = true
			l.asked.Store(true)
			l.wake.Set()
		}
	}
	return asked
}

// enter takes in a link, and reports whether it stays. Of two with the same peer one does, and both
// replicas agree which: that which the lesser origin dialed. If that is true of both, whoever
// dialed them decides. There may be too many by now, as several sessions may end at the same time.
func (ls *links) enter(l *liveLink, room func(list []*liveLink) bool) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	list := slices.Clone(ls.all())
	if i := slices.IndexFunc(list, func(o *liveLink) bool { return o.origin == l.origin }); i >= 0 {
		switch n := l.dialer.Compare(list[i].dialer); {
		case n > 0 || n == 0 && l.dialed:
			return false
		case n < 0:
			list[i].leave()
			list = slices.Delete(list, i, i+1)
		}
	}
	if !room(list) {
		return false
	}
	list = append(list, l)
	ls.list.Store(&list)
	return true
}

func (ls *links) remove(l *liveLink) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(ls.all()), func(o *liveLink) bool { return o == l })
	ls.list.Store(&list)
}

// leave has all links closed, once what is under way is sent. They may come again.
func (ls *links) leave() {
	for _, l := range ls.all() {
		l.leave()
	}
}

// mayStay reports whether the connection to a peer may become a link, and whether there was news lately.
// The queue's slot is held.
func (db *DB) mayStay(o causal.Origin, dialed bool) (may, news bool) {
	news = db.activity.since(time.Now()) < db.opts.IdleTimeout
	may = db.opts.IdleTimeout > 0 && db.queue.broken() == nil && !db.isClosing() && !db.links.Linked(o) && db.roomForLink(db.links.all(), dialed)
	return may, news
}

// roomForLink reports whether there may be one more link. Half of MaxConns is left to sessions.
func (db *DB) roomForLink(list []*liveLink, dialed bool) bool {
	accepted := 0
	for _, l := range list {
		accepted += int(store.Btoi(!l.dialed))
	}
	return db.mesh().Room(len(list)) && (dialed || accepted < db.opts.Limits.MaxConns/2)
}

func (db *DB) mesh() schedule.Mesh { return schedule.Mesh{Fanout: db.opts.Fanout} }

// surveyLinks works out which peers have links, and whether the links carry changes: every peer that
// answers has one, or as many have as a round would reach. If they no longer do, a round is due as soon
// as the velocity asks for one: there may be news at a peer that cannot dial us.
func (db *DB) surveyLinks() {
	ls := &db.links
	ls.mu.Lock()
	defer ls.mu.Unlock()
	linked := map[causal.Origin]bool{}
	for _, l := range ls.all() {
		linked[l.origin] = true
	}
	all := true
	met := 0
	db.peers.each(func(p *peer) {
		p.carried = linked[p.origin]
		met += int(store.Btoi(p.state == PeerOK))
		all = all && (p.carried || !p.live() || p.who.guest)
	})
	small := db.mesh().Small(met)
	ls.small.Store(small)
	enough := db.mesh().Enough(len(linked), all, small)
	if ls.enough.Swap(enough) && !enough {
		db.gossip.lessLinked.Set()
	}
}

// liveLink is a live session over the connection of a session that has ended. One goroutine reads and
// another writes, so that two replicas that both push much never wait for each other.
type liveLink struct {
	db     *DB
	t      *conversation // w and packing belong to the goroutine that writes, r and memory to the one that reads
	peer   *peer         // nil: there are too many
	addr   string
	origin causal.Origin // of the peer,
	dialer causal.Origin // and of the one that dialed
	dialed bool
	stays  bool // it was taken in: see enter
	began  time.Time
	wake   signal // something changed, or there are frames to be sent

	local, remote atomic.Bool // changes since the writing goroutine last looked
	asked         atomic.Bool // a caller waits for a report of the peer
	leaving       atomic.Bool // the link is to be closed
	receiving     atomic.Bool // a push of the peer is under way

	frames []session.Frame // that are being written

	turn    chan struct{} // capacity 1, held by who uses what follows
	link    *link.Link
	err     error
	before  counts // what had gone over the connection when the link was made
	counted counts // what Status already has of it
	lag     lag
}

// counts are what went over a link.
type counts struct{ pulled, served, pushes, duplicates, in, out int64 }

func (c counts) less(d counts) counts {
	return counts{c.pulled - d.pulled, c.served - d.served, c.pushes - d.pushes, c.duplicates - d.duplicates, c.in - d.in, c.out - d.out}
}

func (db *DB) newLink(t *conversation, p *peer, addr string, dialed bool) *liveLink {
	now := time.Now()
	config := schedule.PaceConfig{Silence: db.opts.IdleTimeout, Life: linkLife}
	l := &liveLink{db: db, t: t, peer: p, addr: addr, dialed: dialed, began: now, wake: newSignal(), turn: make(chan struct{}, 1)}
	l.origin, l.dialer = t.session.Stream().Peer(), t.session.Stream().Dialer()
	l.link = link.New(t.session.Stream(), config, &db.links, now, rand.Float64())
	r := t.session.Result()
	l.before = counts{pulled: int64(r.Pulled), served: int64(r.Served), in: t.pace.In.Load(), out: t.pace.Out.Load()}
	l.counted = l.before
	l.local.Store(true) // there may have been changes since the session read its last state
	if db.links.enter(l, func(list []*liveLink) bool { return db.roomForLink(list, dialed) }) {
		l.stays = true
		db.peers.linked(p, 1)
	} else {
		l.leave()
	}
	db.surveyLinks()
	return l
}

// keep runs the link to its end, and takes note of that.
func (l *liveLink) keep(ctx context.Context) {
	db := l.db
	l.lagLocked(l.began, false)
	err := l.run(ctx)
	l.lock()
	l.movedLocked(time.Now())
	theirs, moved := l.link.Known().VectorSum, l.counted.less(l.before)
	l.unlock()
	l.t.close()
	db.links.remove(l)
	if l.stays {
		db.peers.linked(l.peer, -1)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil && !broken(err) {
		err = &PeerError{l.addr, OpLink, err}
		if l.peer != nil && !ownFault(err) {
			db.failed(l.peer, l.dialed, err)
		}
	}
	db.surveyLinks()
	var ours causal.Sum
	db.with(func(r *replica.Replica) { ours = r.Known.VectorSum })
	if theirs != ours && !db.links.enough.Load() {
		db.gossip.localChange.Set()
	}
	db.requestSync()
	ev := SessionEvent{
		Peer: l.addr, Dialed: l.dialed, Live: true, Pulled: int(moved.pulled), Served: int(moved.served), BytesIn: moved.in, BytesOut: moved.out,
		Duration: time.Since(l.began), Err: err,
	}
	if f := db.opts.Events.Session; f != nil {
		f(ev)
	}
}

// broken reports whether an error says only that a connection is gone. That is no fault of the peer:
// if it is gone as well, the next session finds out. An error of the store may be a syscall.Errno, which
// is a net.Error.
func broken(err error) bool {
	var op *net.OpError
	for _, gone := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, os.ErrDeadlineExceeded, net.ErrClosed, errNoBye} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return errors.As(err, &op)
}

// ownFault reports whether an error says that nothing is written here any more.
func ownFault(err error) bool {
	return errors.Is(err, ErrFailed) || errors.Is(err, leveldb.ErrReadOnly) || errors.Is(err, leveldb.ErrClosed)
}

// errNoBye ends a link whose peer does not answer a bye.
var errNoBye = errors.New("the peer does not say bye")

// leave has the link closed, once what is under way is sent.
func (l *liveLink) leave() {
	l.leaving.Store(true)
	l.wake.Set()
}

// run keeps a link until either side closes it.
func (l *liveLink) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.t.pace.Close() })
	defer stop()
	var reading sync.WaitGroup
	reading.Go(func() { l.fail(l.read(ctx)) })
	err := l.write(ctx)
	if err != nil { // the peer may have said why it hung up
		l.t.pace.SetDeadline(time.Now().Add(session.LingerTimeout))
		reading.Wait()
		if l.link.Result().Refused {
			l.t.linger()
		}
	}
	l.t.conn.Close()
	reading.Wait()
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case broken(err) && l.err != nil:
		err = l.err
	}
	if l.link.Done() {
		return err
	}
	return errors.Join(err, l.link.Abandon()) // what came of a push that was cut off is kept
}

// fail ends the link with an error, or with none.
func (l *liveLink) fail(err error) {
	l.lock()
	defer l.unlock()
	if l.err == nil {
		l.err = err
	}
	l.wake.Set()
}

// write does what is due and sends what there is to send, until the link is done. While this goroutine
// or the other is at work for long, it says so to the peer.
func (l *liveLink) write(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	spoke, sent := time.Now(), false
	// wait waits until it can send to the one channel or receive from the other, or a time.
	wait := func(turn chan<- struct{}, wake <-chan struct{}, until time.Time) error {
		for {
			now := time.Now()
			if now.Sub(spoke) >= session.KeepaliveInterval {
				if err := l.t.send([]session.Frame{{Kind: session.FrameKeepalive}}); err != nil {
					return err
				}
				now = time.Now()
				spoke = now
			}
			if !until.After(now) {
				return nil
			}
			timer.Reset(min(session.KeepaliveInterval-now.Sub(spoke), until.Sub(now)))
			select {
			case turn <- struct{}{}:
				return nil
			case <-wake:
				return nil
			case <-timer.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	for {
		if !l.tryLock() {
			if err := wait(l.turn, nil, time.Now().Add(longest)); err != nil {
				return err
			}
		}
		var more, done bool
		var next time.Time
		err := l.t.withKeepalive(func() (err error) {
			defer l.unlock()
			if sent {
				l.wroteLocked(spoke)
			}
			more, done, next, err = l.stepLocked(time.Now())
			return err
		})
		if sent = len(l.frames) > 0; sent {
			if e := l.t.send(l.frames); e != nil {
				return errors.Join(err, e)
			}
			spoke = time.Now()
		}
		switch {
		case err != nil || done:
			return err
		case more || sent:
			continue
		}
		if err := wait(nil, l.wake.C(), next); err != nil {
			return err
		}
	}
}

func (l *liveLink) lock() { l.turn <- struct{}{} }

func (l *liveLink) tryLock() bool {
	select {
	case l.turn <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l *liveLink) unlock() { <-l.turn }

// stepLocked does what is due now and takes out the frames to be sent.
func (l *liveLink) stepLocked(now time.Time) (more, done bool, next time.Time, err error) {
	local, remote := l.local.Swap(false), l.remote.Swap(false)
	if local {
		l.link.LocalChange(now)
	}
	if remote {
		l.link.RemoteChange(now)
	}
	if local || remote {
		l.lagLocked(now, true)
	}
	if l.asked.Swap(false) {
		l.link.PushNow()
	}
	if l.leaving.Load() {
		l.link.Leave()
	}
	if l.link.Overdue(now) {
		l.err = cmp.Or(l.err, errNoBye)
	}
	if l.err == nil {
		if l.link.Step(now); l.link.More() {
			l.err = l.link.Produce()
		}
	}
	l.frames = append(l.frames[:0], l.link.Frames()...)
	return l.link.More(), l.link.Done(), l.link.Next(), l.err
}

// wroteLocked notes that what stepLocked took out is sent.
func (l *liveLink) wroteLocked(now time.Time) {
	if l.link.Wrote(now) {
		l.movedLocked(now)
	}
}

// read takes in frames until the link is done.
func (l *liveLink) read(ctx context.Context) error {
	for {
		kind, payload, err := l.t.next(ctx, session.FrameCap)
		if err != nil {
			return err
		}
		l.t.pace.FrameDone()
		if kind == session.FrameKeepalive {
			l.t.pace.Busy() // it may be taking in what was sent before
		}
		if done, err := l.take(kind, payload); done || err != nil {
			return err
		}
		if kind == session.FrameVectors {
			l.db.reported()
		}
	}
}

// take takes in a frame.
func (l *liveLink) take(kind session.FrameType, payload []byte) (done bool, err error) {
	l.lock()
	defer l.unlock()
	now := time.Now()
	if err = l.link.Receive(now, kind, payload); err != nil && l.err == nil {
		l.err = err // it is done by that, and is not to look as if both had said bye
	}
	l.receiving.Store(l.link.Progress().Pulling)
	l.t.memory.keep(l.link.Retained())
	if kind == session.FrameVectors || kind == session.FrameEnd {
		l.movedLocked(now)
	}
	l.wake.Set()
	return l.link.Done(), err
}

// movedLocked brings what is counted, and what is shown of the peer, up to date.
func (l *liveLink) movedLocked(now time.Time) {
	db, known, res := l.db, l.link.Known(), l.link.Result()
	is := counts{int64(res.Pulled), int64(res.Served), l.link.Pushes, l.link.Duplicates, l.t.pace.In.Load(), l.t.pace.Out.Load()}
	more := is.less(l.counted)
	l.counted = is
	db.activity.moved(more)
	if l.peer != nil {
		db.peers.moved(l.peer, more, known.VectorSum, now)
	}
	l.lagLocked(now, false)
}

// lagLocked works out since when the peer lags, after a change here or when something has moved.
func (l *liveLink) lagLocked(now time.Time, changed bool) {
	if l.peer == nil || changed && l.lag.stale {
		return
	}
	db, has, covered := l.db, l.db.peers.has(l.peer), time.Time{}
	db.with(func(r *replica.Replica) {
		known := l.link.Known()
		if m := r.Members[l.link.Peer()]; m != nil {
			known = &m.Known // by all connections with it
		}
		if changed {
			covered = l.lag.changed(&r.Known, known, has, now)
		} else {
			covered = l.lag.heard(&r.Known, known, has, now)
		}
	})
	if !covered.IsZero() {
		db.peers.covered(l.peer, covered)
	}
}
