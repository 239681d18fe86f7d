package session

import "github.com/level-replicator/replicator/internal/replica"

// startPull is this replica's turn to pull, if that would bring anything.
func (s *Session) startPull() error {
	p := newPulling(s)
	var news int64
	none, busy := false, false
	s.host.With(func(r *replica.Replica) {
		news = r.Known.Behind(&s.known)
		none = p.nothingNew(r)
		p.asksJoin, busy = p.joins(r, news)
		p.asksJoin = p.asksJoin && !none
		r.Joining = r.Joining || p.asksJoin
	})
	if none {
		return s.pulled()
	}
	if busy { // J7
		s.result.Skipped = SkippedBusy
		return s.pulled()
	}
	if s.result.Skipped = s.host.EnterPull(s.theirs.Origin, news); s.result.Skipped != NotSkipped {
		p.leaveJoin()
		return s.pulled()
	}
	s.pulling, s.step = p, WaitAnswer
	return p.begin()
}

func (s *Session) leavePull() {
	if s.pulling != nil {
		if s.pulling.question != FramePush { // which holds up no other
			s.host.LeavePull(s.theirs.Origin)
		}
		s.pulling.leaveJoin()
		s.pulling = nil
	}
}

// leaveJoin lets other sessions join.
func (p *pulling) leaveJoin() {
	if p.asksJoin {
		p.asksJoin = false
		p.session.host.With(func(r *replica.Replica) {
			r.BreakSections()
			r.Joining = false
		})
	}
}

// pulled ends our pull: then it is the peer's turn, or all is said.
func (s *Session) pulled() error {
	s.leavePull()
	s.reportDurable()
	if s.mine.stays && s.theirs.stays { // what is pushed goes by it
		s.reportNews()
	}
	if s.dialed {
		var why []byte
		if s.result.Skipped != NotSkipped && s.theirs.stays {
			why = []byte{byte(s.result.Skipped)}
		}
		s.outbox.send(FrameTurn, why)
		s.step = waitTheirs
		return nil
	}
	if s.stays() {
		s.outbox.send(FrameStay, nil)
		s.startStream()
		return nil
	}
	s.outbox.send(FrameBye, []byte{byte(s.result.Skipped)})
	s.finishWell()
	return nil
}

// gotTurn is the acceptor's turn to pull.
func (s *Session) gotTurn(payload []byte) error {
	s.turnedDown = len(payload) > 0
	return s.startPull()
}

// reportDurable brings to disk what is covered here, if the peer waits for that,
// and reports it. If that fails it tells what is on disk.
func (s *Session) reportDurable() {
	if h, ok := s.host.(Flusher); ok && s.theirs.wants {
		h.MakeDurable()
		s.sendVectors(false)
	}
}

// gotBye is the acceptor's last word: that was all, or both stay.
func (s *Session) gotBye(kind FrameType, payload []byte) error {
	if kind == FrameStay {
		if !s.mine.stays || len(payload) != 0 {
			return replica.ProtocolErrorf("a stay of % x", payload)
		}
		s.startStream()
		return nil
	}
	if len(payload) != 1 || payload[0] > byte(SkippedReadOnly) {
		return replica.ProtocolErrorf("a bye of % x", payload)
	}
	s.result.TheirSkip = SkipReason(payload[0])
	s.finishWell()
	return nil
}
