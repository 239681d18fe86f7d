package transport

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
)

// errSpeaksTLS is what the first byte tells a side without TLS.
var errSpeaksTLS = errors.New("the peer speaks TLS and this replica does not: set the same Secret or TLS as there")

// HandshakeFailure says in one sentence what a failure before the peer's hello means to whoever
// configures the replicas.
type HandshakeFailure struct {
	Why string
	err error
}

func (e *HandshakeFailure) Error() string { return e.Why + " (" + e.err.Error() + ")" }

func (e *HandshakeFailure) Unwrap() error { return e.err }

// HandshakeError explains an error of the handshake, or of any Read or Write until the peer's hello
// has arrived, where crypto/tls reports only an alert and TCP often only a reset. It returns
// errors that need no explanation, nil among them, unchanged. Later errors mean something else.
func HandshakeError(err error) error {
	var (
		done    *HandshakeFailure
		header  tls.RecordHeaderError
		invalid *tls.CertificateVerificationError
	)
	switch {
	case err == nil || errors.As(err, &done):
		return err
	case errors.As(err, &header):
		return &HandshakeFailure{"the peer does not speak TLS, or is something else: its Secret or TLS is not set", err}
	case errors.As(err, &invalid):
		return &HandshakeFailure{"the peer's certificate is not trusted here", err}
	case alerted(err):
		return &HandshakeFailure{"the peer refused this replica: it has another secret or cluster, or trusts another authority", err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return &HandshakeFailure{"the peer hung up before its hello: it has another secret or cluster, or only one side uses TLS, or it is busy", err}
	}
	return err
}

// alerted reports whether the peer ended the handshake by an alert.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// plainConn recognizes a peer that speaks TLS by the first byte it sends, which would otherwise
// look like a frame of some 350 MB.
type plainConn struct {
	net.Conn
	begun bool // one goroutine reads
}

func (c *plainConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.begun || n == 0 {
		return n, err
	}
	c.begun = true
	// TLS record types: 22 handshake, 21 alert. A frame's first byte is the
	// highest of its length and so, below 16 MiB, always 0.
	if p[0] == 22 || p[0] == 21 {
		return 0, errSpeaksTLS
	}
	return n, err
}

// lateConn holds back what a server writes at the very end of its handshake, which is a ticket, until it
// writes something else. Else it would wait for the client to read, who, over a connection that buffers
// nothing, waits for it to read the hello; and the ticket would be a packet of its own.
type lateConn struct {
	net.Conn
	done    bool   // set before anybody else uses the connection
	pending []byte // once done, of the goroutine that writes
}

func (c *lateConn) Read(p []byte) (int, error) {
	if !c.done {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *lateConn) Write(p []byte) (int, error) {
	if c.done && len(c.pending) == 0 {
		return c.Conn.Write(p)
	}
	c.pending = append(c.pending, p...)
	if c.done {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (c *lateConn) flush() error {
	if len(c.pending) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.pending)
	c.pending = nil
	return err
}

// shaken ends the handshake. If it failed, the client is to get the alert.
func (c *lateConn) shaken(err error) {
	c.done = true
	if err != nil {
		c.flush() // the handshake's error says more
	}
}
