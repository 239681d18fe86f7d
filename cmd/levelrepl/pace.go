package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/semaphore"
)

// A client must send or take paceBytes, or all that there is, in paceTime, as a peer must.
const (
	paceBytes = 64 << 10
	paceTime  = 10 * time.Second
)

// errSlow ends a request whose body does not come.
var errSlow = &httpError{http.StatusRequestTimeout, fmt.Sprintf("the body comes too slowly: want %d bytes in %v, and %d a second while others wait", paceBytes, paceTime, slowRate)}

// paced bounds how long a request waits for its client.
func paced(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &pacedWriter{ResponseWriter: w, conn: http.NewResponseController(w), place: placeOf(r)}
		out.conn.SetWriteDeadline(time.Now().Add(2 * paceTime)) // the server may wait for a body that h does not want
		defer out.extend()                                      // of what is written when h has returned
		if r.Body != http.NoBody {
			in := &pacedBody{ReadCloser: r.Body, conn: out.conn, place: out.place, left: paceTime}
			out.conn.SetReadDeadline(time.Now().Add(paceTime)) // of what nobody reads
			r.Body = in
		}
		if r.Method != http.MethodPut && r.Body != http.NoBody {
			if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, paceBytes)); err != nil {
				fail(out, bodyError(err))
				return
			}
		}
		h.ServeHTTP(out, r)
	})
}

// pacedWriter gives up on a client that does not read the answer.
type pacedWriter struct {
	http.ResponseWriter
	conn  *http.ResponseController
	place *place
}

func (w *pacedWriter) extend() { w.conn.SetWriteDeadline(time.Now().Add(paceTime)) }

// Write writes in pieces, since the progress of one write cannot be seen.
func (w *pacedWriter) Write(p []byte) (done int, err error) {
	for {
		part := p[done:min(done+paceBytes, len(p))]
		if !w.place.wait(forTaking, 0, w.extend) {
			return done, os.ErrDeadlineExceeded
		}
		n, err := w.ResponseWriter.Write(part)
		w.place.wait(forNothing, n, func() {})
		done += n
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

// Unwrap is for http.ResponseController.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// pacedBody gives up on a client that does not send. Only time spent waiting for it
// counts.
type pacedBody struct {
	io.ReadCloser
	conn   *http.ResponseController
	place  *place
	left   time.Duration
	passed int
}

func (b *pacedBody) Read(p []byte) (int, error) {
	start := time.Now()
	if !b.place.wait(forBody, 0, func() { b.conn.SetReadDeadline(start.Add(b.left)) }) {
		return 0, errSlow
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), paceBytes)])
	b.left -= time.Since(start)
	if b.passed += n; b.passed >= paceBytes {
		b.left, b.passed = paceTime, 0
	}
	b.place.wait(forNothing, n, func() {})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, errSlow
	case err == io.EOF:
		b.conn.SetReadDeadline(time.Time{}) // the server now watches whether the client hangs up
	}
	return n, err
}

// bodyError returns what is wrong with a body that could not be read.
func bodyError(err error) error {
	var big *http.MaxBytesError
	var own *httpError
	if errors.As(err, &big) || errors.As(err, &own) {
		return err
	}
	return &httpError{http.StatusBadRequest, "the body is not whole, nothing was done: " + err.Error()}
}

// memory bounds the bytes of values in transit from and to clients.
type memory struct {
	max     int64
	sem     *semaphore.Weighted
	reading chan struct{} // of those that read from the store what is not counted yet
	oust    func()        // ends a slow request
}

const (
	freeBytes   = 64 << 10 // that a request may hold uncounted
	looseBytes  = 1 << 20  // that it may hold while it waits for more
	memoryTime  = 10 * time.Second
	readingMost = 8
)

var errBusy = &httpError{http.StatusServiceUnavailable, "too many bytes of values are in transit; try again, or see serve --http-in-flight"}

func newMemory(most int64, oust func()) *memory {
	return &memory{max: most, sem: semaphore.NewWeighted(most), reading: make(chan struct{}, readingMost), oust: oust}
}

// weigh returns what n bytes count. A request for more than there is gets all of it.
func (m *memory) weigh(n int) int64 {
	if n <= freeBytes {
		return 0
	}
	return min(int64(n), m.max)
}

// take waits for n bytes, but not for ever. No request waits while it holds some: two that
// each held a half and wanted the rest would wait for each other.
func (m *memory) take(r *http.Request, n int64) error {
	if m.sem.TryAcquire(n) {
		placeOf(r).hold(n)
		return nil
	}
	wait, cancel := context.WithTimeout(r.Context(), memoryTime)
	defer cancel()
	go func() {
		every := time.NewTicker(clientPatience)
		defer every.Stop()
		for {
			select {
			case <-every.C:
				m.oust()
			case <-wait.Done():
				return
			}
		}
	}()
	err := m.sem.Acquire(wait, n)
	if err == nil {
		placeOf(r).hold(n)
	} else if r.Context().Err() == nil {
		err = errBusy
	}
	return err
}

func (m *memory) give(r *http.Request, n int64) {
	placeOf(r).hold(0)
	if n >= m.max/4 {
		// Garbage of many times that size is left, and the next request would add to it.
		runtime.GC()
	}
	m.sem.Release(n)
}

// load reads a value from the store and counts its bytes until free is called. If there is
// no room, it drops the value and reads it again once there is.
func (m *memory) load(r *http.Request, read func() (size int, err error), drop func()) (free func(), err error) {
	once := func() (int64, error) {
		select {
		case m.reading <- struct{}{}:
		case <-r.Context().Done():
			return 0, r.Context().Err()
		}
		defer func() { <-m.reading }()
		n, err := read()
		return m.weigh(n), err
	}
	held := int64(0)
	for {
		n, err := once()
		switch {
		case err != nil:
			m.give(r, held)
			return nil, err
		case held == 0 && m.sem.TryAcquire(n):
			placeOf(r).hold(n)
			held = n
			fallthrough
		case n <= held:
			return func() { m.give(r, held) }, nil
		}
		drop()
		m.give(r, held)
		if err := m.take(r, n); err != nil {
			return nil, err
		}
		held = n
	}
}

// body reads the body of a request, of at most most bytes. Call free when it is no longer
// needed.
func (m *memory) body(r *http.Request, most int64) (value []byte, free func(), err error) {
	length := r.ContentLength // -1: not known
	if length > most {
		return nil, nil, &http.MaxBytesError{Limit: most}
	}
	held := int64(0)
	defer func() {
		if err != nil {
			m.give(r, held)
		}
	}()
	steps := []int64{freeBytes, length}
	if length < 0 {
		steps = []int64{freeBytes, looseBytes, most}
	}
	var buf []byte
	for _, size := range steps {
		size = min(size, steps[len(steps)-1])
		m.give(r, held)
		held = 0
		if n := m.weigh(int(size)); n > 0 {
			if err := m.take(r, n); err != nil {
				return nil, nil, err
			}
			held = n
		}
		if buf, err = fill(r.Body, buf, int(size)); err != nil {
			if err == io.EOF {
				return buf, func() { m.give(r, held) }, nil
			}
			return nil, nil, bodyError(err)
		}
	}
	// It is as long as it may be; is that all?
	if n, err := io.ReadFull(r.Body, make([]byte, 1)); err != io.EOF {
		if n > 0 {
			return nil, nil, &http.MaxBytesError{Limit: most}
		}
		return nil, nil, bodyError(err)
	}
	return buf, func() { m.give(r, held) }, nil
}

// fill reads until buf has size bytes. The error is io.EOF if there are no more.
func fill(r io.Reader, buf []byte, size int) ([]byte, error) {
	if size > cap(buf) {
		buf = append(make([]byte, 0, size), buf...)
	}
	for len(buf) < size {
		n, err := r.Read(buf[len(buf):size])
		buf = buf[:len(buf)+n]
		if err != nil {
			return buf, err
		}
	}
	return buf, nil
}
