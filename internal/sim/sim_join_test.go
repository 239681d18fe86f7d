package sim

import (
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
)

// joinStats are what happened in pulls that were answered in sections.
type joinStats struct {
	joins, resumed, resumedElsewhere, declined, rounds, entries, rows, rowsWhole, brokenJoins, joinsWhole int
}

func (s *joinStats) fields() []*int {
	return []*int{&s.joins, &s.resumed, &s.resumedElsewhere, &s.declined, &s.rounds, &s.entries, &s.rows, &s.rowsWhole, &s.brokenJoins, &s.joinsWhole}
}

func (s *joinStats) missing() (names []string) {
	all := []string{"joins", "joins that go on", "joins that go on at another server", "joins that go on nowhere", "rounds", "log entries ahead", "rows", "keys that are sent whole", "joins cut off", "joins that come to their end"}
	for i, n := range s.fields() {
		if *n == 0 {
			names = append(names, all[i])
		}
	}
	return names
}

// countJoin counts a frame of a join, which goes from one end to the other.
func (w *simWorld) countJoin(c *simConn, i int, f session.Frame) {
	s := &w.stats.joinStats
	e := c.ends[1-i]
	switch f.Kind {
	case session.FrameJoin:
		c.resumes = f.Payload[len(f.Payload)-1] != 0 || len(f.Payload) > 3
	case session.FrameSections:
		if f.Payload[0] == 2 {
			s.rounds++
			return
		}
		s.joins++
		c.joins = e
		if f.Payload[0] == 1 {
			s.resumed++
			s.resumedElsewhere += int(store.Btoi(e.n.joined != nil && e.n.joined != e.peer.r))
		} else {
			s.declined += int(store.Btoi(c.resumes))
		}
		e.n.joined = e.peer.r
	case session.FrameEntries:
		s.entries++
	case session.FrameRows:
		s.rows++
	case session.FramePage:
		s.rowsWhole += int(store.Btoi(c.joins == e))
	case session.FrameEnd:
		s.joinsWhole += int(store.Btoi(c.joins == e && f.Payload[0] == 1))
		c.joins = nil
	}
}
