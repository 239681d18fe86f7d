package replicator

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/transport"
)

// conversation is a session over a connection.
type conversation struct {
	db      *DB
	conn    net.Conn
	pace    *transport.ProgressConn
	session *session.Session
	ticket  *transport.Ticket // of an accepted connection
	w       *bufio.Writer
	r       *bufio.Reader
	work    pullWork
	packs   bool   // what is sent may be packed
	packed  []byte // buffer for it
	memory  reservation
}

// sessionHost is this replica as the host of one session.
type sessionHost struct {
	db     *DB
	remote string // where the peer is
}

// attempt is a session at one address of a peer.
type attempt struct {
	result session.Result
	pace   *transport.ProgressConn
	at     string        // where the connection led; empty if there was none
	heeds  bool          // Dial asks which addresses to avoid
	tried  bool          // and there was one to try
	stays  *conversation // its connection stays open; nil if not
	err    error
}

// errTakesNothing is why a peer did not pull what it lacks.
var errTakesNothing = errors.New("the peer lacks something and takes nothing: its store failed or is read-only")

func (db *DB) params(remembered causal.Origin, dialed bool) session.Params {
	return session.Params{
		Name: db.opts.Name, Cluster: db.opts.Cluster, Addr: db.advertised(), CachedPeer: remembered,
		PageSize: session.PageSize, Window: db.network.window(), BatchSize: replica.BatchLimit, MaxValue: db.opts.Limits.MaxValue, MaxKey: db.opts.Limits.MaxKey,
		Wants: db.waiters.wants, Asked: db.waiters.latest(), Stay: func(o causal.Origin) (may, news bool) { return db.mayStay(o, dialed) },
	}
}

// converse holds a session over a connection that is through with its handshake.
// The connection is closed then, unless both replicas stay: then converse returns it. peer returns the
// peer's address, once it is greeted.
func (db *DB) converse(ctx context.Context, conn net.Conn, pace *transport.ProgressConn, s *session.Session, tk *transport.Ticket, peer func() string) (stays *conversation, err error) {
	db.network.talking.Add(1)
	defer db.network.talking.Add(-1)
	stop := context.AfterFunc(ctx, func() { pace.Close() })
	defer stop()
	t := &conversation{db: db, conn: conn, pace: pace, session: s, ticket: tk, memory: reservation{of: &db.network.memory}, w: writers.Get().(*bufio.Writer), r: readers.Get().(*bufio.Reader)}
	t.w.Reset(conn)
	t.r.Reset(conn)
	t.work = pullWork{db: db, peer: peer}
	t.packs = db.opts.Compression.packs(conn)
	err = t.run(ctx)
	t.work.end()
	if err == nil && s.Stream() != nil {
		return t, nil
	}
	defer t.close()
	if s.Result().Refused {
		t.linger()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		// What came of a pull that was cut off is kept.
		err = errors.Join(err, s.Abandon())
	}
	return nil, err
}

// close closes the connection and lets go of what was held for it.
func (t *conversation) close() {
	t.conn.Close()
	t.memory.keep(0)
	t.putBuffers()
}

func (t *conversation) run(ctx context.Context) error {
	if err := t.pace.SetDeadline(time.Now().Add(session.HandshakeTimeout)); err != nil {
		return err
	}
	t.session.Start()
	greeted := false
	for {
		if err := t.flush(); err != nil {
			return t.lastWord(ctx, err)
		}
		for t.session.More() {
			if err := t.withKeepalive(t.session.Produce); err != nil {
				return errors.Join(err, t.flush())
			}
			if err := t.flush(); err != nil {
				return t.lastWord(ctx, err)
			}
		}
		if t.session.Done() || t.session.Stream() != nil {
			return nil
		}
		if err := t.step(ctx, greeted); err != nil {
			return errors.Join(err, t.flush())
		}
		if !greeted {
			greeted = true
			if err := t.welcome(); err != nil {
				return err
			}
		}
	}
}

// linger lets the peer read why it was refused. Closing at once would reset the
// connection while it is still sending, and the reason might never be seen.
func (t *conversation) linger() {
	if t.pace.SetDeadline(time.Now().Add(session.LingerTimeout)) == nil {
		io.CopyN(io.Discard, t.r, session.FrameCap)
	}
}

// lastWord looks for a refusal once sending has failed: the peer may have said why
// it hung up while we were not listening.
func (t *conversation) lastWord(ctx context.Context, err error) error {
	if t.pace.SetDeadline(time.Now().Add(session.LingerTimeout)) != nil {
		return err
	}
	for range 8 {
		kind, payload, e := t.read(ctx, session.FrameCap)
		if e != nil {
			break
		}
		if kind == session.FrameRefuse {
			return t.session.Receive(kind, payload)
		}
	}
	return err
}

// welcome lifts the bounds on a peer that has said who it is.
func (t *conversation) welcome() error {
	if t.ticket != nil {
		if err := t.ticket.Promote(); err != nil {
			return errors.Join(t.session.Refuse(session.RefuseBusy, err), t.flush())
		}
	}
	return t.pace.SetDeadline(time.Time{})
}

func (c sessionHost) With(f func(r *replica.Replica)) { c.db.with(f) }

func (c sessionHost) Commit(stage func(t *replica.Txn) error) error { return c.db.commit(stage) }

func (c sessionHost) Addresses() []string { return c.db.peers.addresses() }

func (c sessionHost) EnterPull(from causal.Origin, writes int64) session.SkipReason {
	return c.db.enterPull(from, writes)
}

func (c sessionHost) LeavePull(from causal.Origin) { c.db.leavePull(from) }

func (c sessionHost) MakeDurable() error { return c.db.makeDurable() }

// Pace waits while goleveldb has much to merge.
func (c sessionHost) Pace(most time.Duration) time.Duration {
	began := time.Now()
	for time.Since(began) < most {
		if behind, err := c.db.backlog.IsBehind(); !behind || err != nil || c.db.isClosing() {
			break
		}
		time.Sleep(paceStep)
	}
	return time.Since(began)
}

const paceStep = 2 * time.Millisecond

// Learn takes in the addresses that a peer names. Those of its own machine mean
// something only if we are on it too.
func (c sessionHost) Learn(addrs []string) {
	now := time.Now()
	self := c.db.advertised()
	for _, a := range addrs {
		if a != self && (!netaddr.IsLoopbackAddr(a) || netaddr.IsLoopbackAddr(c.remote)) {
			c.db.peers.add(a, fromPeer, now)
		}
	}
}

// call dials a peer, holds a session with it, and returns how that went. A name is tried at one of its addresses
// after another, until a peer introduces itself.
func (db *DB) call(ctx context.Context, p *peer, why session.Goal) (session.Result, error) {
	started := time.Now()
	a := db.attempt(ctx, p, why, false)
	for n := 1; n < maxAttempts && ctx.Err() == nil && db.peers.elsewhere(p, a); n++ {
		next := db.attempt(ctx, p, why, true)
		if next.at == "" { // no other address answers
			if isSelf(a.err) && next.tried {
				a.err = &PeerError{p.addr, OpDial, errNoOther}
			}
			break
		}
		a = next
	}
	res, err := a.result, a.err
	if err != nil && ctx.Err() != nil {
		db.peers.free(p) // we gave up, which says nothing of the peer
		return res, err
	}
	var link *liveLink
	if a.stays != nil {
		link = db.newLink(a.stays, p, p.addr, true)
	}
	db.ended(p, res, a.pace, started, err)
	if !isSelf(err) { // that is no peer, and it comes again at every pause
		db.report(p.addr, res, a.pace, time.Since(started), err)
	}
	if link != nil && !db.spawnBeforeClose(func() { link.keep(db.background) }) {
		link.t.close()
	}
	return res, err
}

func (db *DB) attempt(ctx context.Context, p *peer, why session.Goal, other bool) (a attempt) {
	db.peers.mu.Lock()
	remembered := p.origin
	db.peers.mu.Unlock()
	params := db.params(remembered, true)
	params.Goal = why
	params.OnHello = func(h *session.Hello) bool {
		broke := db.peers.broke(p)
		db.replaced(db.peers.answered(p, h.Origin, h.Name, a.at))
		return broke
	}
	s := session.New(sessionHost{db, p.addr}, true, params)
	defer func() { a.result = s.Result() }()
	dialing, cancel := context.WithTimeout(ctx, session.HandshakeTimeout)
	defer cancel()
	raw, err := db.dial(dialing, p, other, &a)
	if err != nil {
		a.err = &PeerError{p.addr, OpDial, err}
		return a
	}
	a.at = raw.RemoteAddr().String()
	a.pace = transport.NewProgressConn(raw, db.network.rates)
	conn, err := db.network.security.ClientTo(dialing, a.pace, p.addr)
	if err != nil {
		a.err = &PeerError{p.addr, OpHandshake, err}
	} else if a.stays, err = db.converse(ctx, conn, a.pace, s, nil, func() string { return p.addr }); err != nil {
		a.err = &PeerError{p.addr, PeerOp(s.Op()), err}
	}
	return a
}

// tookNothing returns an error if one of the two lacks something and takes nothing;
// broken is why, if it is this replica.
func tookNothing(r *session.Result, addr string, broken error) error {
	switch {
	case r.Skipped == session.SkippedReadOnly && broken != nil:
		return &PeerError{addr, OpPull, broken}
	case r.TheirSkip == session.SkippedReadOnly:
		return &PeerError{addr, OpServe, errTakesNothing}
	}
	return nil
}

// accept takes connections until the listener is closed.
func (db *DB) accept(ctx context.Context) {
	const least = 5 * time.Millisecond
	pause := least
	for {
		conn, err := db.network.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file handles, say: it may pass.
			if pause == least {
				db.opts.Logger.Warn("replicator: cannot accept connections", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = least
		tk, err := db.network.admission.Admit(conn.RemoteAddr(), func() { conn.Close() })
		if err != nil {
			conn.Close()
			db.network.refusals.note(db.opts.Logger, conn.RemoteAddr(), err)
			continue
		}
		db.spawn(func() {
			defer tk.Release()
			db.answer(ctx, conn, tk)
		})
	}
}

// answer holds a session with a peer that dialed.
func (db *DB) answer(ctx context.Context, raw net.Conn, tk *transport.Ticket) {
	started := time.Now()
	pace := transport.NewProgressConn(raw, db.network.rates)
	stop := context.AfterFunc(ctx, func() { pace.Close() })
	defer stop()
	shaking, cancel := context.WithTimeout(ctx, session.HandshakeTimeout)
	conn, err := db.network.security.Server(shaking, pace)
	cancel()
	if err != nil {
		raw.Close()
		if ctx.Err() == nil {
			db.network.refusals.note(db.opts.Logger, raw.RemoteAddr(), tk.Explain(err))
		}
		return
	}
	var from *peer
	params := db.params(causal.Origin{}, false)
	params.OnHello = func(h *session.Hello) bool {
		from = db.incoming(h, raw.RemoteAddr())
		return db.peers.broke(from)
	}
	s := session.New(sessionHost{db, raw.RemoteAddr().String()}, false, params)
	called := func() string {
		if from != nil {
			return from.addr
		}
		return raw.RemoteAddr().String()
	}
	stays, err := db.converse(ctx, conn, pace, s, tk, called)
	addr := called()
	if err != nil {
		err = &PeerError{addr, PeerOp(s.Op()), tk.Explain(err)}
	}
	res := s.Result()
	var link *liveLink
	if stays != nil {
		link = db.newLink(stays, from, addr, false)
	}
	switch stranger := res.Peer == (causal.Origin{}); {
	case err != nil && ctx.Err() != nil:
		db.peers.gone(from)
		return
	case stranger && isSelf(err):
		return // the state of the address says so
	case stranger && err != nil:
		db.network.refusals.note(db.opts.Logger, raw.RemoteAddr(), err)
	case from != nil:
		db.peers.gone(from)
		db.ended(from, res, pace, started, err)
	}
	db.report(addr, res, pace, time.Since(started), err)
	if link != nil {
		link.keep(ctx)
	}
}
