package replicator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	handshakeTimeout = 5 * time.Second // TLS, and then the peer's hello
	pageSize         = 256 << 10       // bytes after which a page ends
	smallPage        = 16 << 10        // and after a session that broke off
	inFlightTimeout  = 10 * time.Second
	lingerTimeout    = time.Second // for a last word to be read before the connection goes
)

// conversation is a session over a connection.
type conversation struct {
	db      *DB
	conn    net.Conn
	pace    *progressConn
	session *session
	ticket  *ticket // of an accepted connection
	w       *bufio.Writer
	r       *bufio.Reader
	work    pullWork
	packs   bool   // what is sent may be packed
	packed  []byte // buffer for it
	held    int    // bytes of MaxInFlight,
	small   int    // and those of them that are of the room for small frames
	large   bool   // it has the one place of those that hold more than their share
}

func (db *DB) params(remembered Origin) sessionParams {
	return sessionParams{
		name: db.opts.Name, cluster: db.opts.Cluster, addr: db.advertised(), remembered: remembered,
		pageSize: pageSize, window: db.window(), batchSize: batchLimit, maxValue: db.opts.MaxValue, maxKey: db.opts.MaxKey,
		wants: db.wants, asked: db.latestCall(),
	}
}

// careful has small pages sent after a session that broke off, as nothing is kept of a
// page that is cut, and little read that may never be sent.
func (p *sessionParams) careful(broke bool) {
	if broke {
		p.pageSize, p.slow = smallPage, true
	}
}

// window is how much a session may send of one state. All of them together hold
// about four of the largest in memory.
func (db *DB) window() int { return windowSize / max(1, int(db.talking.Load())/4) }

// readers and writers are buffers of connections, used again: most sessions are short,
// and end before they fill one.
var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 64<<10) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 64<<10) }}
)

func (t *conversation) putBuffers() {
	t.w.Reset(nil)
	t.r.Reset(nil)
	writers.Put(t.w)
	readers.Put(t.r)
}

// converse holds a session over a connection that is through with its handshake.
// The connection is closed then. peer gives the peer's address, once it is greeted.
func (db *DB) converse(ctx context.Context, conn net.Conn, pace *progressConn, s *session, tk *ticket, peer func() string) error {
	defer conn.Close()
	db.talking.Add(1)
	defer db.talking.Add(-1)
	stop := context.AfterFunc(ctx, func() { pace.Close() })
	defer stop()
	t := &conversation{db: db, conn: conn, pace: pace, session: s, ticket: tk, w: writers.Get().(*bufio.Writer), r: readers.Get().(*bufio.Reader)}
	t.w.Reset(conn)
	t.r.Reset(conn)
	defer t.putBuffers()
	t.work = pullWork{db: db, peer: peer}
	t.packs = db.opts.Compression.packs(conn)
	defer t.keep(0)
	defer t.work.end()
	err := t.run(ctx)
	if s.refusing {
		t.linger()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		// What came of a pull that was cut off is kept.
		err = errors.Join(err, s.abandon())
	}
	return err
}

func (t *conversation) run(ctx context.Context) error {
	if err := t.pace.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	t.session.start()
	greeted := false
	for {
		if err := t.flush(); err != nil {
			return t.lastWord(ctx, err)
		}
		for t.session.more() {
			if err := t.patiently(t.session.produce); err != nil {
				return errors.Join(err, t.flush())
			}
			if err := t.flush(); err != nil {
				return t.lastWord(ctx, err)
			}
		}
		if t.session.done {
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
	if t.pace.SetDeadline(time.Now().Add(lingerTimeout)) == nil {
		io.CopyN(io.Discard, t.r, frameCap)
	}
}

// lastWord looks for a refusal once sending has failed: the peer may have said why
// it hung up while we were not listening.
func (t *conversation) lastWord(ctx context.Context, err error) error {
	if t.pace.SetDeadline(time.Now().Add(lingerTimeout)) != nil {
		return err
	}
	for range 8 {
		kind, payload, e := t.read(ctx, frameCap)
		if e != nil {
			break
		}
		if kind == frameRefuse {
			return t.session.receive(kind, payload)
		}
	}
	return err
}

// welcome lifts the bounds on a peer that has said who it is.
func (t *conversation) welcome() error {
	if t.ticket != nil {
		if err := t.ticket.promote(); err != nil {
			return errors.Join(t.session.refuse(refuseBusy, err), t.flush())
		}
	}
	return t.pace.SetDeadline(time.Time{})
}

// step reads one frame and has the session take it in.
func (t *conversation) step(ctx context.Context, greeted bool) error {
	limit := helloCap
	if greeted {
		limit = frameCap
	}
	kind, payload, err := t.read(ctx, limit)
	if kind == framePacked && err == nil && greeted {
		kind, payload, err = t.unpack(ctx, payload)
	}
	if err != nil {
		var broken protocolError
		if errors.As(err, &broken) {
			return t.session.reject(err) // a frame of no possible length
		}
		if !greeted {
			err = handshakeError(err)
		}
		return err
	}
	t.pace.frameDone()
	take := func() error { return t.session.receive(kind, payload) }
	if greeted {
		err = t.patiently(take)
	} else {
		err = take()
	}
	t.work.follow(t.session, t.pace)
	if kind == frameVectors {
		t.db.reported()
	}
	t.keep(t.session.retained())
	return err
}

func (t *conversation) read(ctx context.Context, limit int) (frameType, []byte, error) {
	head, err := t.r.Peek(frameHead)
	if err != nil {
		if len(head) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	n, err := payloadSize(head, limit)
	if err != nil {
		return 0, nil, err
	}
	if err := t.reserve(ctx, frameHead+n); err != nil {
		return 0, nil, err
	}
	kind, payload, _, err := readFrame(t.r, nil, limit)
	return kind, payload, err
}

// reserve takes n bytes of MaxInFlight. One session at a time may pass half of it,
// and is then counted no further: a value may be larger than the bound, and two
// that each held a half and waited for more would wait for each other.
//
// What is small does not wait for what is large: a session that holds little has room
// of its own, which the others never fill.
func (t *conversation) reserve(ctx context.Context, n int) error {
	if !t.large && t.held+n <= t.db.small.share() && t.db.small.try(n) {
		t.held, t.small = t.held+n, t.small+n
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, inFlightTimeout)
	defer cancel()
	if !t.large && t.held > 0 && int64(t.held-t.small+n) > t.db.inflight.max/2 {
		select {
		case t.db.large <- struct{}{}:
			t.large = true
		case <-wait.Done():
			return fmt.Errorf("another session has held a large value for %v, try again later", inFlightTimeout)
		}
	}
	if t.large {
		return nil
	}
	if err := t.db.inflight.acquire(wait, n); err != nil {
		return fmt.Errorf("no room for %d bytes more among MaxInFlight in %v: %w", n, inFlightTimeout, err)
	}
	t.held += n
	return nil
}

// keep gives back all but n bytes.
func (t *conversation) keep(n int) {
	if t.large && n <= t.held {
		<-t.db.large
		t.large = false
	}
	if free := t.held - n; free > 0 {
		large := min(free, t.held-t.small)
		t.db.inflight.release(large)
		t.db.small.release(free - large)
		t.held, t.small = n, t.small-(free-large)
	}
}

// flush sends what the session has to say.
func (t *conversation) flush() error {
	if len(t.session.out) == 0 {
		return nil
	}
	for _, f := range t.session.out {
		f = t.pack(f)
		if _, err := t.w.Write(appendHead(t.w.AvailableBuffer(), f.kind, len(f.payload))); err != nil {
			return err
		}
		if _, err := t.w.Write(f.payload); err != nil {
			return err
		}
	}
	t.session.out = t.session.out[:0]
	return t.w.Flush()
}

// caller is this server as the host of one session.
type caller struct {
	db     *DB
	remote string // where the peer is
}

func (c caller) at(f func(r *replica))                       { c.db.at(f) }
func (c caller) commit(stage func(t *txn) error) error       { return c.db.commit(stage) }
func (c caller) addresses() []string                         { return c.db.peers.addresses() }
func (c caller) enterPull(from Origin, writes int64) leftOut { return c.db.enterPull(from, writes) }
func (c caller) leavePull(from Origin)                       { c.db.leavePull(from) }
func (c caller) harden() error                               { return c.db.makeDurable() }

// learn takes in the addresses that a peer tells. Those of its own machine mean
// something only if we are on it too.
func (c caller) learn(addrs []string) {
	now := time.Now()
	self := c.db.advertised()
	for _, a := range addrs {
		if a != self && (!isLoopbackAddr(a) || isLoopbackAddr(c.remote)) {
			c.db.peers.add(a, fromPeer, now)
		}
	}
}

// call dials a peer and holds a session with it, which it returns. A name is tried at one of its addresses
// after another, until a peer introduces itself.
func (db *DB) call(ctx context.Context, p *peer, why purpose) (*session, error) {
	started := time.Now()
	a := db.attempt(ctx, p, why, false)
	for n := 1; n < maxAttempts && ctx.Err() == nil && db.peers.elsewhere(p, a); n++ {
		next := db.attempt(ctx, p, why, true)
		if next.at == "" { // no other address answers
			if isSelf(a.err) && next.tried {
				a.err = &PeerError{p.addr, "dial", errNoOther}
			}
			break
		}
		a = next
	}
	s, err := a.session, a.err
	if err != nil && ctx.Err() != nil {
		db.peers.free(p) // we gave up, which says nothing of the peer
		return s, err
	}
	db.ended(p, s, a.pace, started, err)
	if !isSelf(err) { // that is no peer, and it comes again at every pause
		db.report(p.addr, s, a.pace, time.Since(started), err)
	}
	return s, err
}

// attempt is a session at one address of a peer.
type attempt struct {
	session *session
	pace    *progressConn
	at      string // where the connection led; empty if there was none
	heeds   bool   // Dial asks which addresses to avoid
	tried   bool   // and there was one to try
	err     error
}

func (db *DB) attempt(ctx context.Context, p *peer, why purpose, other bool) (a attempt) {
	db.peers.mu.Lock()
	remembered := p.origin
	db.peers.mu.Unlock()
	params := db.params(remembered)
	params.purpose = why
	s := newSession(caller{db, p.addr}, true, params)
	a.session = s
	s.greetedAs = func(h *hello) {
		s.params.careful(db.peers.broke(p))
		db.replaced(db.peers.answered(p, h.origin, h.name, a.at))
	}
	dialing, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := db.dial(dialing, p, other, &a)
	if err != nil {
		a.err = &PeerError{p.addr, "dial", err}
		return a
	}
	a.at = raw.RemoteAddr().String()
	a.pace = newProgressConn(raw, db.rates)
	conn, err := db.security.clientTo(dialing, a.pace, p.addr)
	if err != nil {
		a.err = &PeerError{p.addr, "handshake", err}
	} else if err := db.converse(ctx, conn, a.pace, s, nil, func() string { return p.addr }); err != nil {
		a.err = &PeerError{p.addr, s.op(), err}
	}
	return a
}

// whole reports whether nothing of a session is left to another.
func (s *session) whole() bool {
	return !s.partial && s.leftOut != pullLater && s.theyLeft != pullLater
}

// errTakesNothing is why a peer did not pull what it lacks.
var errTakesNothing = errors.New("the peer lacks something and takes nothing: its store failed or is read-only")

// tookNothing returns an error if one of the two lacks something and takes nothing;
// broken is why, if it is this replica.
func tookNothing(s *session, addr string, broken error) error {
	switch {
	case s.leftOut == pullNever && broken != nil:
		return &PeerError{addr, "pull", broken}
	case s.theyLeft == pullNever:
		return &PeerError{addr, "serve", errTakesNothing}
	}
	return nil
}

// op names the step that a session was in.
func (s *session) op() string {
	switch {
	case s.theirs.origin == Origin{}:
		return "hello" // not yet come, or not accepted
	case s.pulling != nil:
		return "pull"
	case s.serving != nil || s.expect == wantTheirs || s.expect == wantTurn:
		return "serve"
	}
	return "session"
}

// accept takes connections until the listener is closed.
func (db *DB) accept(ctx context.Context) {
	const least = 5 * time.Millisecond
	pause := least
	for {
		conn, err := db.listener.Accept()
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
		tk, err := db.admission.admit(conn.RemoteAddr(), func() { conn.Close() })
		if err != nil {
			conn.Close()
			db.refusals.note(db.opts.Logger, conn.RemoteAddr(), err)
			continue
		}
		db.spawn(func() {
			defer tk.release()
			db.answer(ctx, conn, tk)
		})
	}
}

// answer holds a session with a peer that dialed.
func (db *DB) answer(ctx context.Context, raw net.Conn, tk *ticket) {
	started := time.Now()
	pace := newProgressConn(raw, db.rates)
	stop := context.AfterFunc(ctx, func() { pace.Close() })
	defer stop()
	shaking, cancel := context.WithTimeout(ctx, handshakeTimeout)
	conn, err := db.security.server(shaking, pace)
	cancel()
	if err != nil {
		raw.Close()
		if ctx.Err() == nil {
			db.refusals.note(db.opts.Logger, raw.RemoteAddr(), tk.explain(err))
		}
		return
	}
	var from *peer
	s := newSession(caller{db, raw.RemoteAddr().String()}, false, db.params(Origin{}))
	s.greetedAs = func(h *hello) {
		from = db.incoming(h, raw.RemoteAddr())
		s.params.careful(db.peers.broke(from))
	}
	called := func() string {
		if from != nil {
			return from.addr
		}
		return raw.RemoteAddr().String()
	}
	err = db.converse(ctx, conn, pace, s, tk, called)
	addr := called()
	if err != nil {
		err = &PeerError{addr, s.op(), tk.explain(err)}
	}
	switch stranger := s.theirs.origin == (Origin{}); {
	case err != nil && ctx.Err() != nil:
		db.peers.gone(from)
		return
	case stranger && isSelf(err):
		return // the state of the address says so
	case stranger && err != nil:
		db.refusals.note(db.opts.Logger, raw.RemoteAddr(), err)
	case from != nil:
		db.peers.gone(from)
		db.ended(from, s, pace, started, err)
	}
	db.report(addr, s, pace, time.Since(started), err)
}
