package session

import "errors"

// RefuseCode says why a conversation ends early.
type RefuseCode uint64

const (
	refuseError   RefuseCode = iota // see the text
	refuseCluster                   // another cluster
	RefuseSelf                      // that is me
	RefuseVersion                   // no protocol version in common
	RefuseBusy                      // too many connections
	RefuseClock                     // a version from too far in the future
)

// RefusedError is the reason that a peer gave for ending a conversation.
type RefusedError struct {
	Code int    // see refuseCode
	Text string // for people; printable
}

func (e *RefusedError) Error() string { return "refused by the peer: " + e.Text }

// RejectedError is why a hello was not accepted here.
type RejectedError struct {
	code RefuseCode
	Why  string // for our log
	told string // for the peer, who is told nothing of ours
}

func (e *RejectedError) Error() string { return e.Why }

// Is makes errors.Is(err, errSelf) true of a connection to oneself.
func (e *RejectedError) Is(target error) bool { return target == ErrSelf && e.code == RefuseSelf }

var ErrSelf = errors.New("this is the server itself")
