package statuspage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
)

// replica is a row of the table of replicas.
type replica struct {
	Name, Addr           string
	Standing             line
	Error                string
	Digest               *digest
	Lag, Behind, Unsaved string
	Delay, MostDelay     string
	Last, LiveFor        string
	Pulled, BytesIn      string
	Served, BytesOut     string
}

// delayOf returns the replication delay of what an origin wrote.
func delayOf(s *replicator.Status, o replicator.Origin) replicator.Delay {
	if i := slices.IndexFunc(s.Delays, func(d replicator.Delay) bool { return d.Origin == o }); i >= 0 && o != (replicator.Origin{}) {
		return s.Delays[i]
	}
	return replicator.Delay{}
}

// digest is shown in one colour for all replicas that have it.
type digest struct{ Short, Long, Class string }

const colours = 6

// replicas returns this one and its peers, those in trouble first if there are too many.
func replicas(s *replicator.Status) []replica {
	groups := map[replicator.Digest]int{}
	group := func(d replicator.Digest, counting bool) *digest {
		if counting {
			return nil
		}
		if _, ok := groups[d]; !ok {
			groups[d] = len(groups)
		}
		return &digest{d.String()[:8], d.String(), fmt.Sprintf("g%d", groups[d]%colours)}
	}
	list := []replica{{
		Name: s.Name, Addr: s.Addr, Standing: line{"", "this replica"}, Digest: group(s.Digest, s.Counting),
		Lag: "–", Unsaved: count(s.NotDurable), Delay: "–", Last: "–", Pulled: "–", Served: "–",
	}}
	for _, p := range sorted(s.Peers) {
		x := replica{
			Name: cmp.Or(p.Name, p.Addr), Addr: p.Addr, Standing: standing(&p), Error: strings.TrimPrefix(p.Error, "replicator: "), Last: ago(p.Last, s.Time),
			Lag: "–", Unsaved: "–", Delay: "–", Pulled: count(p.Pulled), Served: count(p.Served),
			BytesIn: size(p.BytesIn) + " in", BytesOut: size(p.BytesOut) + " out",
		}
		if !p.Live.IsZero() {
			x.Last, x.LiveFor = "live", "for "+span(s.Time.Sub(p.Live))
		}
		if d := delayOf(s, p.Origin); d.Count > 0 {
			x.Delay, x.MostDelay = span(d.Quantile(0.5)), "99 %: "+span(d.Quantile(0.99))
		}
		if met(&p) && !p.Moved {
			x.Digest, x.Lag, x.Unsaved = group(p.Digest, p.Counting), count(p.Lag), count(p.NotDurable)
			switch {
			case p.Lag > 0:
				x.Behind = "at most " + span(p.LagTime)
			case p.Ahead > 0:
				x.Behind = count(p.Ahead) + " ahead"
			}
		}
		list = append(list, x)
	}
	return list
}

// sorted returns the peers by name, without this replica's own addresses.
func sorted(peers []replicator.PeerStatus) []replicator.PeerStatus {
	list := slices.DeleteFunc(slices.Clone(peers), func(p replicator.PeerStatus) bool { return p.State == replicator.PeerSelf })
	slices.SortStableFunc(list, func(a, b replicator.PeerStatus) int {
		if len(list) >= maxReplicas {
			if c := cmp.Compare(severity(standing(&b).Class), severity(standing(&a).Class)); c != 0 {
				return c
			}
		}
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Addr, b.Addr))
	})
	return list
}

func severity(class string) int { return slices.Index([]string{"ok", "", "busy", "bad"}, class) }

// met reports whether a peer has ever reported what it holds.
func met(p *replicator.PeerStatus) bool { return !p.Last.IsZero() }

// standing returns a peer's state in a word or two.
func standing(p *replicator.PeerStatus) line {
	switch {
	case p.Moved:
		return line{"", "moved"}
	case p.State == replicator.PeerNew:
		return line{"", "not met yet"}
	case p.State == replicator.PeerRefused:
		return line{"bad", "refused"}
	case p.State == replicator.PeerFailing && p.FailedOp == replicator.OpDial:
		return line{"bad", "unreachable"}
	case p.State == replicator.PeerFailing:
		return line{"bad", "failing"}
	case p.Differs:
		return line{"bad", "differs"}
	case p.Agrees:
		return line{"ok", "agrees"}
	case !p.Live.IsZero() && p.LagTime < time.Second: // what the two hold is compared in the next round
		return line{"ok", "live"}
	case p.Lag > 0:
		return line{"busy", "behind"}
	case p.Ahead > 0:
		return line{"busy", "ahead"}
	}
	return line{"", "caught up"}
}

// verdict sums up the page in one sentence.
func verdict(s *replicator.Status) line {
	if s.Failed != "" {
		return line{"bad", "This replica refuses writes: its store failed"}
	}
	// A replica with several addresses counts once, in the best state of any of them.
	best := map[string]string{}
	words := map[string]bool{}
	for _, p := range sorted(s.Peers) {
		if p.Moved {
			continue
		}
		id := p.Addr
		if (p.Origin != replicator.Origin{}) {
			id = p.Origin.String()
		}
		is := standing(&p)
		if before, ok := best[id]; !ok || severity(is.Class) < severity(before) {
			best[id] = is.Class
		}
		words[is.Text] = true
	}
	if s.Alone {
		return line{"bad", "This replica replicates with nobody: every address that it was given is its own"}
	}
	if len(best) == 0 {
		return line{"", "No other replica is known yet"}
	}
	agree, worst := 1, "ok"
	for _, class := range best {
		if class == "ok" {
			agree++
		} else if severity(class) > severity(worst) {
			worst = class
		}
	}
	all := len(best) + 1
	every := "All " + plural(all, "replica")
	if all == 2 {
		every = "Both replicas"
	}
	switch {
	case agree == all && words["live"]:
		return line{"ok", every + " agree, or are less than a second behind"}
	case agree == all:
		return line{"ok", every + " agree"}
	case worst == "" && !words["not met yet"]:
		return line{"ok", every + " have the same writes"}
	}
	return line{cmp.Or(worst, "busy"), fmt.Sprintf("%d of %s agree", agree, plural(all, "replica"))}
}

// notes returns what an operator should know.
func notes(s *replicator.Status) []line {
	var list []line
	note := func(class, format string, args ...any) {
		list = append(list, line{class, fmt.Sprintf(format, args...)})
	}
	if s.Failed != "" {
		note("bad", "The store failed to write: %s. Reads go on; look at the disk, then open the database again.", s.Failed)
	}
	if s.Starved != "" {
		note("bad", "The store finds no file handle and refuses writes for now: %s. It resumes by itself once there are some.", s.Starved)
	}
	if s.Rewound {
		note("bad", "The store was opened at an older state than it was closed in, and what was known then is not all known again. Peers bring back what they have; Verify reports how many keys there were.")
	}
	if s.ReadOnly {
		note("busy", "This replica is read-only: it serves its peers and pulls nothing.")
	}
	if !s.Ready {
		note("busy", "The first attempt to replicate is under way; writes wait for it.")
	}
	if s.Mismatches > 0 {
		note("bad", "%s came back after digests differed: a store was corrupted, here or at a peer. Verify reports which.", plural(s.Mismatches, "version"))
	}
	if s.HeldBack > 0 {
		note("bad", "%s not taken here: the value is above MaxValue, or the key above MaxKey. The largest has %d bytes.", plural(s.HeldBack, "version")+" of peers", s.Largest)
	}
	for _, p := range sorted(s.Peers) {
		name := cmp.Or(p.Name, p.Addr)
		switch {
		case p.Moved:
		case p.Differs:
			note("bad", "%s has the same version vector and holds something else. The next session repairs it.", name)
		case p.State == replicator.PeerFailing && met(&p):
			note("bad", "%s was last heard %s.", name, ago(p.Last, s.Time))
		case p.State == replicator.PeerFailing:
			note("bad", "%s has never answered.", name)
		case p.State == replicator.PeerRefused:
			note("bad", "%s refuses this replica, or is refused by it.", name)
		}
	}
	if n := len(list) - maxLines; n > 0 {
		list = append(list[:maxLines], line{"", fmt.Sprintf("… and %s more.", count(n))})
	}
	return list
}
