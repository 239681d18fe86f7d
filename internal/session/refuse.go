package session

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// RefuseCode says why a session ends early.
type RefuseCode uint64

const (
	refuseError   RefuseCode = iota // see the text
	refuseCluster                   // another cluster
	RefuseSelf                      // that is me
	RefuseVersion                   // no protocol version in common
	RefuseBusy                      // too many connections
	RefuseClock                     // a version from too far in the future
)

// RefusedError is the reason that a peer gave for ending a session.
type RefusedError struct {
	Code int    // see RefuseCode
	Text string // for people; printable
}

func (e *RefusedError) Error() string { return "refused by the peer: " + e.Text }

// HelloError reports why a hello was not accepted here.
type HelloError struct {
	code  RefuseCode
	Why   string // for our log
	reply string // for the peer, which learns nothing of ours
}

func (e *HelloError) Error() string { return e.Why }

// Is makes errors.Is(err, ErrSelf) true of a connection to oneself.
func (e *HelloError) Is(target error) bool { return target == ErrSelf && e.code == RefuseSelf }

// ErrSelf is why a session with oneself ends.
var ErrSelf = errors.New("this is the replica itself")

// PrintableError is an error's text on one line, as printable has it.
func PrintableError(err error) string {
	return printable.Printable(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// Reject ends the session because of what the peer sent, and returns why.
func (s *Session) Reject(err error) error {
	code := refuseError
	if errors.Is(err, replica.ErrClockSkew) {
		code = RefuseClock
	}
	var broken replica.ProtocolError
	if errors.As(err, &broken) {
		s.host.With(func(r *replica.Replica) { r.Dismiss(s.theirs.Origin) })
	}
	return s.Refuse(code, err)
}

// Refuse ends the session and tells the peer why.
func (s *Session) Refuse(code RefuseCode, err error) error {
	return s.refuseSaying(code, err, err.Error())
}

func (s *Session) refuseSaying(code RefuseCode, err error, text string) error {
	s.outbox.sendLast(FrameRefuse, store.AppendBytes(binary.AppendUvarint(nil, uint64(code)), []byte(text[:min(len(text), 512)])))
	s.result.Refused = true
	s.finish()
	return err
}
