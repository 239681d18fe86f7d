package session

import (
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
)

// Result says how a session went. It is final when the session is done or was abandoned.
type Result struct {
	Dialed bool          // this replica dialed
	Began  time.Time     // when it said hello, by its clock; zero if it never did
	Asked  uint64        // Params.Asked
	Peer   causal.Origin // zero until a hello was accepted

	// Known are the peer's vectors as it last reported them.
	Known causal.Knowledge
	// VectorSum stands for the peer's version vector at the end of a session that went well, or is zero:
	// if a pull was left out, nobody knows until the peer is asked again.
	VectorSum causal.Sum

	Idle    bool // both held the same, and nothing but hellos was exchanged
	Refused bool // this replica's last word was a refusal

	// The pull of this replica.
	Pulled   int        // versions that were merged
	Skipped  SkipReason // why there was no pull
	partial  bool       // it goes on in another session
	HeldBack bool       // not all of it was taken: a key or a value is too large
	// Versions that are held back here, before and after the pull; zero if there was none.
	HeldBefore, HeldNow int

	// The pull of the peer.
	Served    int        // versions that were sent
	TheirSkip SkipReason // why the acceptor did not pull, as it says
	ServedAll bool       // the peer pulled everything that it lacked
	Withheld  bool       // it was not sent everything: it takes no such values, or has to come again

	Repaired int // versions that came back though both covered the same
}

// Whole reports whether no pull is left to another session.
func (r *Result) Whole() bool {
	return !r.partial && r.Skipped != SkippedBusy && r.TheirSkip != SkippedBusy
}

// Result returns how the session has gone so far.
func (s *Session) Result() Result {
	r := s.result
	r.Dialed, r.Asked, r.Peer, r.Known = s.dialed, s.params.Asked, s.theirs.Origin, s.known
	r.Began, r.ServedAll = s.mine.Wall, r.ServedAll && !r.Withheld
	r.VectorSum = s.vectorSumAfter()
	return r
}

// vectorSumAfter works out what the peer covers at the end of a session that went well. The dialer pulled
// first, so what it was told of is what the acceptor had joined with its own.
func (s *Session) vectorSumAfter() causal.Sum {
	switch r := &s.result; {
	case r.Skipped != NotSkipped || r.TheirSkip != NotSkipped || r.Withheld:
		return causal.Sum{}
	case r.Idle || s.dialed:
		return s.told.vectorSum
	}
	return s.known.VectorSum
}

// SkipReason is why a session has no pull one way.
type SkipReason byte

const (
	NotSkipped      SkipReason = iota // it has one
	SkippedBusy                       // another session brings the same
	SkippedReadOnly                   // nothing is written there now
)

// Progress is what a session is bringing over at the moment.
type Progress struct {
	Pulling   bool  // a pull is under way here,
	Repairing bool  // and this part of it is a repair
	Versions  int64 // that the session has brought so far

	// Of a join: how much of the work is done, from 0 to 1, and how many keys it comes to. 0 if that cannot be said.
	Part float64
	Keys int64
}

// Progress returns how far the session's own pull is.
func (s *Session) Progress() Progress {
	p := Progress{Versions: int64(s.result.Pulled + s.result.Repaired)}
	if s.pulling != nil {
		p.Pulling, p.Repairing = true, s.pulling.repair != nil
		if j := s.pulling.join; j != nil {
			p.Part, p.Keys = j.progress()
		}
	}
	return p
}

// Behind returns how many writes the peer covers, going by what it reported, that are not covered here.
func (s *Session) Behind() (writes int64) { return s.behind(&s.known) }

func (s *Session) behind(k *causal.Knowledge) (writes int64) {
	s.host.With(func(r *replica.Replica) { writes = r.Known.Behind(k) })
	return writes
}

// Retained returns how many bytes of received frames the session still needs.
func (s *Session) Retained() int {
	if s.pulling == nil {
		return 0
	}
	return s.pulling.retained()
}

// Op names the part of the session that is under way, for an error.
func (s *Session) Op() string {
	switch {
	case s.theirs.Origin == causal.Origin{}:
		return "hello" // it has not come, or was not accepted
	case s.pulling != nil:
		return "pull"
	case s.serving != nil || s.step == waitTheirs || s.step == WaitTurn:
		return "serve"
	}
	return "session"
}
