package session

import (
	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// answer is what a session sends because the peer asked for it: serving answers a pull, fetching a
// fetch, wanting a want.
type answer interface {
	// produce sends the next page of it, and ends it after the last.
	produce() error
	// leave is called when it has ended or broke off.
	leave()
}

// serve begins an answer.
func (s *Session) serve(a answer, err error) error {
	if err == nil {
		s.serving = a
	}
	return err
}

// More reports whether Produce has something to send.
func (s *Session) More() bool {
	return s.serving != nil || len(s.outbox.queue) > 0 || s.stream != nil && s.stream.owed != owed{}
}

// Produce sends the next page of what is being served, or its end.
func (s *Session) Produce() error {
	if len(s.outbox.queue) > 0 {
		s.outbox.sendQueued(s.params.PageSize)
		return nil
	}
	if s.stream != nil && s.stream.owed != (owed{}) {
		s.stream.pay()
		return nil
	}
	if err := s.serving.produce(); err != nil {
		return s.Refuse(refuseError, err)
	}
	return nil
}

func (s *Session) leaveServing() {
	if s.serving != nil {
		s.serving.leave()
		s.serving = nil
	}
}

// view takes a state, with what the peer must know of it. f, which may be nil, is called in the
// moment of that state.
func (s *Session) view(f func(r *replica.Replica)) (v replica.View, err error) {
	s.host.With(func(r *replica.Replica) {
		if v, err = r.Look(); err != nil {
			return
		}
		v.MayHaveStale, v.Keys = r.Stale(), r.Keys
		v.Rows, v.Rev, v.Cloud = r.Known.Since(s.told.rev), r.Known.Rev, r.Cloud.Clone()
		if f != nil {
			f(r)
		}
	})
	return v, err
}

// tell sends what is news in the state of a page, before the page (P4).
func (s *Session) tell(v *replica.View) {
	if v.Rev > s.told.rev || len(v.Cloud) > 0 {
		s.sendRows(v.Rows, v.Rev, v.Cloud, nil)
	}
}

// sender is what the answers have in common: it puts keys into pages.
type sender struct {
	session *Session
	peer    causal.Vector // what the peer covers; nil if that does not matter, or it did not say
	apart   int           // keys of which only the dots were sent
	left    bool          // something was not sent: the peer must come again
}

// open takes a state, tells the peer what is news in it, and begins a page of it.
func (c *sender) open() (st replica.View, p page, err error) {
	st, err = c.session.view(nil)
	if err == nil {
		c.session.tell(&st)
	}
	return st, page{session: c.session}, err
}

// add puts a key with its whole state into the page (M6). Of what the peer covers only
// the dots are sent. It reports whether values are still to be sent, when they are asked for or
// in another pull (P9).
func (c *sender) add(st *replica.View, p *page, key []byte, held store.Siblings) (apart bool, err error) {
	vs, apart, err := c.contents(st, key, held, c.peer.Contains, c.most())
	if err != nil {
		return false, err
	}
	if apart {
		if c.apart >= maxApart || !c.session.theirs.Apart {
			c.left = true
			return true, nil
		}
		c.apart++
		for i := range vs {
			if x := &vs[i]; !x.NameOnly && x.Large == 0 {
				*x = store.Version{Dot: x.Dot, Deleted: x.Deleted, Apart: true}
			}
		}
	}
	p.put(key, vs)
	return apart, nil
}

// end says that the answer is whole, or that the peer should come again.
func (c *sender) end(whole bool) {
	s := c.session
	s.outbox.send(FrameEnd, []byte{byte(store.Btoi(whole))})
	s.leaveServing()
	if s.step == WaitPull {
		s.step = WaitTurn
	}
}

func (c *sender) leave() {}
