package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A peer must move progressBytes, or a whole frame, in progressTime.
const (
	progressBytes = 64 << 10
	progressTime  = 10 * time.Second
)

// slowError ends a connection that did not move on.
type slowError struct {
	verb string // what the peer does too slowly
	n    int
}

func (e *slowError) Error() string {
	return fmt.Sprintf("the peer is too slow: it %s %d bytes in %v, want %d or a whole frame", e.verb, e.n, progressTime, progressBytes)
}

func (e *slowError) Timeout() bool { return true }

func (e *slowError) Temporary() bool { return false }

func (e *slowError) Unwrap() error { return os.ErrDeadlineExceeded }

// ProgressConn cuts a peer that keeps a connection without moving on, counts
// its bytes and keeps to the rates. It goes around the raw connection, TLS
// around it. Reading, writing, closing and deadlines may be concurrent with
// each other, two Reads or two Writes may not.
//
// Only time spent waiting for the peer counts. A deadline between one frame and
// the next would also count what we ourselves do meanwhile (commit, wait
// for memory or for our own rate), and blame the peer for it.
//
// A deadline that the caller sets, such as that of the hello, holds as well.
type ProgressConn struct {
	net.Conn
	In, Out atomic.Int64 // bytes since the connection was made

	r, w   direction
	closed chan struct{}
	close  func()
}

func NewProgressConn(conn net.Conn, limit Rates) *ProgressConn {
	closed := make(chan struct{})
	return &ProgressConn{
		Conn:   conn,
		r:      direction{limiter: limit.read, set: conn.SetReadDeadline, verb: "sent", left: progressTime},
		w:      direction{limiter: limit.write, set: conn.SetWriteDeadline, verb: "took", left: progressTime},
		closed: closed,
		close:  sync.OnceFunc(func() { close(closed) }),
	}
}

// FrameDone notes that a whole frame has passed, and allows the peer the full
// time for the next one it sends. If one goroutine reads all the while that another writes, the
// peer must send something now and then though it has nothing to say. Writing has no need of it:
// there small frames that do not wait use up no time.
func (c *ProgressConn) FrameDone() { c.r.renew() }

// Busy notes that the peer says that it is at work, and allows it the full time for taking what is
// written: it may have to take in what it was sent before.
func (c *ProgressConn) Busy() { c.w.renew() }

func (c *ProgressConn) Read(p []byte) (int, error) {
	p = c.r.chunk(p)
	n, err := c.r.move(c.Conn.Read, p)
	c.In.Add(int64(n))
	if err == nil {
		// Paid afterwards: before, nobody knows how much there is to read.
		err = c.r.pay(n, c.closed)
	}
	return n, err
}

func (c *ProgressConn) Write(p []byte) (int, error) {
	done := 0
	for {
		part := c.w.chunk(p[done:])
		if err := c.w.pay(len(part), c.closed); err != nil {
			return done, err
		}
		n, err := c.w.move(c.Conn.Write, part)
		done += n
		c.Out.Add(int64(n))
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

func (c *ProgressConn) Close() error {
	c.close()
	return c.Conn.Close()
}

func (c *ProgressConn) SetDeadline(t time.Time) error {
	return errors.Join(c.r.setLimit(t), c.w.setLimit(t))
}

func (c *ProgressConn) SetReadDeadline(t time.Time) error { return c.r.setLimit(t) }

func (c *ProgressConn) SetWriteDeadline(t time.Time) error { return c.w.setLimit(t) }

// direction is the progress of reading or of writing.
type direction struct {
	limiter *rate.Limiter
	set     func(time.Time) error // the connection's deadline for this direction
	verb    string

	mu     sync.Mutex
	limit  time.Time     // the caller's deadline; zero: none
	start  time.Time     // of the call under way, or of its renewal; zero: none
	left   time.Duration // time that the peer may still take, as of start
	passed int           // bytes since the time was last renewed
}

// chunk cuts p to what one call may move: a Write reports nothing of its
// progress until it ends, and a limiter refuses more than its burst.
func (d *direction) chunk(p []byte) []byte {
	n := progressBytes
	if d.limiter != nil {
		n = min(n, d.limiter.Burst())
	}
	return p[:min(n, len(p))]
}

// pay waits until the rate permits n bytes. WaitN would want a context for
// what is a channel here.
func (d *direction) pay(n int, closed <-chan struct{}) error {
	if d.limiter == nil || n == 0 {
		return nil
	}
	r := d.limiter.ReserveN(time.Now(), n)
	wait := r.Delay()
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-closed:
		r.Cancel()
		return net.ErrClosed
	}
}

// move makes one call of the connection within the time that is left.
func (d *direction) move(call func([]byte) (int, error), p []byte) (int, error) {
	if err := d.begin(); err != nil {
		return 0, err
	}
	n, err := call(p)
	return n, d.end(n, err)
}

func (d *direction) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.start = time.Now()
	return d.applyLocked()
}

func (d *direction) end(n int, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.left -= now.Sub(d.start)
	d.start = time.Time{}
	d.passed += n
	callers := !d.limit.IsZero() && !now.Before(d.limit)
	if errors.Is(err, os.ErrDeadlineExceeded) && !callers {
		return &slowError{d.verb, d.passed}
	}
	if d.passed >= progressBytes {
		d.left, d.passed = progressTime, 0
	}
	return err
}

func (d *direction) renew() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left, d.passed = progressTime, 0
	if !d.start.IsZero() {
		d.start = time.Now()
		d.applyLocked() // the call under way will report what is wrong with the connection
	}
}

func (d *direction) setLimit(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = t
	return d.applyLocked()
}

// applyLocked hands the earlier of both deadlines to the connection.
func (d *direction) applyLocked() error {
	t := d.limit
	if !d.start.IsZero() {
		if own := d.start.Add(d.left); t.IsZero() || own.Before(t) {
			t = own
		}
	}
	return d.set(t)
}
