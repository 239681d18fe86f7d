package replicator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	handshakeTimeout = 5 * time.Second // TLS, and then the peer's hello
	pageSize         = 256 << 10       // bytes after which a page ends
	inFlightTimeout  = 10 * time.Second
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
	held    int // bytes of MaxInFlight
}

func (db *DB) params(remembered Origin) sessionParams {
	return sessionParams{
		name: db.opts.Name, cluster: db.opts.Cluster, addr: db.advertised(), remembered: remembered,
		pageSize: pageSize, batchSize: groupSize, maxValue: db.opts.MaxValue, maxKey: db.opts.MaxKey,
		wants: db.wants, asked: db.latestCall(),
	}
}

// converse holds a session over a connection that is through with its handshake.
// The connection is closed then.
func (db *DB) converse(ctx context.Context, conn net.Conn, pace *progressConn, s *session, tk *ticket) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { pace.Close() })
	defer stop()
	t := &conversation{db: db, conn: conn, pace: pace, session: s, ticket: tk, w: bufio.NewWriterSize(conn, 64<<10), r: bufio.NewReaderSize(conn, 64<<10)}
	defer func() { t.release(0) }()
	err := t.run(ctx)
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
			return err
		}
		for t.session.more() {
			if err := t.session.produce(); err != nil {
				return errors.Join(err, t.flush())
			}
			if err := t.flush(); err != nil {
				return err
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
	if err != nil {
		if !greeted {
			err = handshakeError(err)
		}
		return err
	}
	t.pace.frameDone()
	err = t.session.receive(kind, payload)
	if kind == frameVectors {
		t.db.reported()
	}
	t.release(t.session.retained())
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
	n := int(uint32(head[0])<<24|uint32(head[1])<<16|uint32(head[2])<<8|uint32(head[3])) + 4
	if n <= limit+frameHead {
		wait, cancel := context.WithTimeout(ctx, inFlightTimeout)
		err := t.db.inflight.acquire(wait, n)
		cancel()
		if err != nil {
			return 0, nil, fmt.Errorf("no room for a frame of %d bytes within MaxInFlight: %w", n, err)
		}
		t.held += n
	}
	kind, payload, _, err := readFrame(t.r, nil, limit)
	return kind, payload, err
}

// release gives back what is held beyond some bytes.
func (t *conversation) release(keep int) {
	if t.held > keep {
		t.db.inflight.release(t.held - keep)
		t.held = keep
	}
}

// flush sends what the session has to say.
func (t *conversation) flush() error {
	if len(t.session.out) == 0 {
		return nil
	}
	for _, f := range t.session.out {
		var head [frameHead]byte
		n := 1 + len(f.payload)
		head[0], head[1], head[2], head[3], head[4] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n), byte(f.kind)
		if _, err := t.w.Write(head[:]); err != nil {
			return err
		}
		if _, err := t.w.Write(f.payload); err != nil {
			return err
		}
	}
	t.session.out = t.session.out[:0]
	return t.w.Flush()
}

// call dials a peer and holds a session with it.
func (db *DB) call(ctx context.Context, p *peer) error {
	started := time.Now()
	db.peers.mu.Lock()
	remembered := p.origin
	db.peers.mu.Unlock()
	s := newSession(db, true, db.params(remembered))
	var pace *progressConn
	err := func() error {
		dialing, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		raw, err := db.opts.Dial(dialing, "tcp", p.addr)
		if err != nil {
			return &PeerError{p.addr, "dial", err}
		}
		pace = newProgressConn(raw, db.rates)
		conn, err := db.security.clientTo(dialing, pace, p.addr)
		if err != nil {
			return &PeerError{p.addr, "handshake", err}
		}
		if err := db.converse(ctx, conn, pace, s, nil); err != nil {
			return &PeerError{p.addr, s.op(), err}
		}
		return nil
	}()
	db.ended(p, s, pace, err)
	db.report(p.addr, s, pace, time.Since(started), err)
	return err
}

// op names the step that a session was in.
func (s *session) op() string {
	switch {
	case s.theirs.origin == Origin{}:
		return "hello"
	case s.pulling != nil:
		return "pull"
	case s.serving != nil || s.expect == wantTheirs || s.expect == wantTurn:
		return "serve"
	}
	return "session"
}

// accept takes connections until the listener is closed.
func (db *DB) accept(ctx context.Context) {
	pause := 5 * time.Millisecond
	for {
		conn, err := db.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file handles, say: it may pass.
			db.opts.Logger.Warn("replicator: cannot accept connections", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		tk, err := db.admission.admit(conn.RemoteAddr())
		if err != nil {
			conn.Close()
			db.refusals.note(db.opts.Logger, "busy", err)
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
		db.refusals.note(db.opts.Logger, raw.RemoteAddr().String(), err)
		return
	}
	s := newSession(db, false, db.params(Origin{}))
	s.greetedAs = func(h *hello) { db.incoming(h, raw.RemoteAddr()) }
	err = db.converse(ctx, conn, pace, s, tk)
	addr := raw.RemoteAddr().String()
	if p := db.dialer(s, raw.RemoteAddr()); p != nil {
		addr = p.addr
		db.ended(p, s, pace, err)
	}
	if err != nil {
		err = &PeerError{addr, s.op(), err}
		if (s.theirs.origin == Origin{}) {
			db.refusals.note(db.opts.Logger, raw.RemoteAddr().String(), err)
		}
	}
	db.report(addr, s, pace, time.Since(started), err)
}
