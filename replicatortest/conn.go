package replicatortest

import (
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// BufferSize is how many bytes a connection holds in each direction that were
// written and not yet read. A Write beyond them waits.
const BufferSize = 256 << 10

// link is one connection: two ends and a stream each way.
type link struct {
	id       uint64
	net      *Network
	from, to *Host
	ends     [2]*conn   // of from, of to
	streams  [2]*stream // written by the end of the same index

	// mu guards the ends and streams. Never held over a wait but that of changed,
	// which synctest knows to be durable.
	mu      sync.Mutex
	changed sync.Cond // at every change of anything
	broken  bool      // reset: nothing more gets in
}

// stream is one direction of a link.
type stream struct {
	net    *Network
	rand   *rand.Rand
	chunks []chunk // in the order written; one that is due earlier than its predecessor waits for it
	size   int     // bytes in chunks, at most BufferSize
	budget int     // bytes until the link is cut; negative: no cut

	writing bool      // a Write is under way, others wait for their turn
	ended   bool      // the writer has closed
	endDue  time.Time // when the reader may notice
	unread  bool      // the reader has closed
	refused bool      // and the writer may know
}

// chunk is what arrives at one moment.
type chunk struct {
	due  time.Time
	data []byte
}

func newLink(from, to *Host, local, remote address, nth uint64) *link {
	l := &link{net: from.net, from: from, to: to}
	l.changed.L = &l.mu
	for i := range l.streams {
		hash := fnv.New64a()
		// A zero byte between: "ab"+"c" is not "a"+"bc".
		io.WriteString(hash, from.name+"\x00"+to.name)
		l.streams[i] = &stream{net: l.net, budget: -1,
			rand: rand.New(rand.NewPCG(l.net.seed^hash.Sum64(), 2*nth+uint64(i)))}
	}
	l.ends[0] = &conn{link: l, host: from, in: l.streams[1], out: l.streams[0], local: local, remote: remote}
	l.ends[1] = &conn{link: l, host: to, in: l.streams[0], out: l.streams[1], local: remote, remote: local}
	return l
}

// reset breaks the link and loses what is under way.
func (l *link) reset() {
	l.mu.Lock()
	l.breakOff(nil)
	l.mu.Unlock()
	l.net.forget(l)
}

// breakOff lets nothing more in, and nothing out but what keep still holds. The
// caller holds l.mu.
func (l *link) breakOff(keep *stream) {
	l.broken = true
	for _, s := range l.streams {
		if s != keep {
			s.drop()
		}
	}
	l.changed.Broadcast()
}

func (l *link) setBudget(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drawBudget(bytes)
}

// drawBudget decides where each direction is cut. The caller holds l.mu, or is
// the only one who knows the link.
func (l *link) drawBudget(bytes int) {
	for _, s := range l.streams {
		s.budget = -1
		if bytes > 0 {
			s.budget = bytes - bytes/2 + s.rand.IntN(bytes)
		}
	}
}

// wait releases l.mu until something changes or a moment comes, zero for none.
// The timer lives no longer than the wait, in the bubble of who waits.
func (l *link) wait(until time.Time) {
	if until.IsZero() {
		l.changed.Wait()
		return
	}
	timer := time.AfterFunc(time.Until(until), func() {
		// Under the lock, or else it could fire before Wait listens.
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
	l.changed.Wait()
	timer.Stop()
}

// draw returns a latency. The caller holds the link's lock.
func (s *stream) draw() time.Duration {
	min, max := s.net.latency()
	if max == min {
		return min
	}
	return min + time.Duration(s.rand.Int64N(int64(max-min)+1))
}

// send takes what fits of p.
func (s *stream) send(p []byte) int {
	p = p[:min(len(p), BufferSize-s.size)]
	if s.budget >= 0 {
		p = p[:min(len(p), s.budget)]
		s.budget -= len(p)
	}
	if len(p) == 0 {
		return 0
	}
	now := time.Now()
	due := now.Add(s.draw())
	s.size += len(p)
	if k := len(s.chunks) - 1; k >= 0 && !due.After(now) {
		// It cannot overtake the last chunk, and need not come later.
		s.chunks[k].data = append(s.chunks[k].data, p...)
	} else {
		s.chunks = append(s.chunks, chunk{due, append([]byte(nil), p...)})
	}
	return len(p)
}

// receive moves what has arrived into p.
func (s *stream) receive(p []byte, now time.Time) (n int) {
	for n < len(p) && len(s.chunks) > 0 && !s.chunks[0].due.After(now) {
		k := copy(p[n:], s.chunks[0].data)
		n += k
		if s.chunks[0].data = s.chunks[0].data[k:]; len(s.chunks[0].data) == 0 {
			s.chunks[0] = chunk{}
			s.chunks = s.chunks[1:]
		}
	}
	s.size -= n
	return n
}

func (s *stream) drop() { s.chunks, s.size = nil, 0 }

// conn is one end of a link, guarded by the link's lock.
type conn struct {
	link                        *link
	host                        *Host
	in, out                     *stream
	local, remote               address
	closed                      bool
	readDeadline, writeDeadline time.Time
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Read(p []byte) (int, error) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	for {
		now := time.Now()
		if err := c.usable(c.readDeadline, now); err != nil {
			return 0, c.fail("read", err)
		}
		if len(p) == 0 {
			return 0, nil
		}
		if n := c.in.receive(p, now); n > 0 {
			c.host.received.Add(int64(n))
			c.link.changed.Broadcast() // there is room
			return n, nil
		}
		next := c.readDeadline
		switch {
		case len(c.in.chunks) > 0:
			next = earlier(next, c.in.chunks[0].due)
		case c.link.broken:
			return 0, c.fail("read", os.NewSyscallError("read", syscall.ECONNRESET))
		case c.in.ended && !c.in.endDue.After(now):
			return 0, io.EOF
		case c.in.ended:
			next = earlier(next, c.in.endDue)
		}
		c.link.wait(next)
	}
}

func (c *conn) Write(p []byte) (n int, err error) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	// One Write at a time, so that those of several goroutines do not mix.
	for c.out.writing {
		if err := c.writable(); err != nil {
			return 0, err
		}
		c.link.wait(c.writeDeadline)
	}
	// As in TCP, who writes to a closed end learns of it one Write late. (tls.Conn
	// relies on it: its Close sends a last alert.)
	if c.out.unread && !c.out.refused && c.writable() == nil {
		c.out.refused = true
		c.count(len(p))
		return len(p), nil
	}
	c.out.writing = true
	defer func() {
		c.out.writing = false
		c.link.changed.Broadcast()
	}()
	for {
		if err := c.writable(); err != nil {
			return n, err
		}
		k := c.out.send(p[n:])
		n += k
		c.count(k)
		if c.out.budget == 0 {
			c.link.breakOff(c.out)
			c.link.net.forget(c.link)
			if n < len(p) {
				continue // to the error
			}
		}
		if n == len(p) {
			return n, nil
		}
		if k > 0 { // only then, or else two waiting writers would wake each other for ever
			c.link.changed.Broadcast()
		}
		c.link.wait(c.writeDeadline)
	}
}

func (c *conn) count(sent int) {
	c.host.sent.Add(int64(sent))
	c.link.net.bytes.Add(int64(sent))
}

// usable returns why an operation that has to end by the deadline cannot begin.
func (c *conn) usable(deadline, now time.Time) error {
	if c.closed {
		return net.ErrClosed
	}
	if !deadline.IsZero() && !now.Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// writable returns why nothing can be written now, other than for lack of room.
func (c *conn) writable() error {
	switch err := c.usable(c.writeDeadline, time.Now()); {
	case err != nil:
		return c.fail("write", err)
	case c.link.broken:
		return c.fail("write", os.NewSyscallError("write", syscall.ECONNRESET))
	case c.out.refused:
		return c.fail("write", os.NewSyscallError("write", syscall.EPIPE))
	}
	return nil
}

// Close lets the other end read what was written before, and then io.EOF. What it
// writes is lost: its Write that waits, or its second from now, fails.
func (c *conn) Close() error {
	c.link.mu.Lock()
	if c.closed {
		c.link.mu.Unlock()
		return c.fail("close", net.ErrClosed)
	}
	c.closed = true
	c.in.unread = true
	c.in.refused = c.in.writing // who waits for room need not wait longer
	c.in.drop()
	c.out.ended = true
	c.out.endDue = time.Now().Add(c.out.draw())
	over := c.link.ends[0].closed && c.link.ends[1].closed
	c.link.changed.Broadcast()
	c.link.mu.Unlock()
	if over {
		c.link.net.forget(c.link)
	}
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.readDeadline, &c.writeDeadline)
}
func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadlines(t, &c.readDeadline) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.writeDeadline) }

func (c *conn) setDeadlines(t time.Time, fields ...*time.Time) error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	for _, field := range fields {
		*field = t
	}
	c.link.changed.Broadcast() // who waits has to set another timer
	return nil
}

func (c *conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// earlier returns the earlier of two moments, of which the first may be zero for none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
