package replicator

import (
	"errors"
	"strings"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
)

// ErrFailed refuses writes after the store failed to write once: goleveldb
// could let the failed write replace a later one. Close the handle and open
// it again. The write that failed may or may not be there then.
//
// A write that fails for want of a file handle (syscall.EMFILE, syscall.ENFILE) is
// no such failure: nothing of it was written, Status.Starved says why, and writes
// succeed again once there are handles.
var ErrFailed = errors.New("replicator: the store failed to write; close the database and open it again")

// ErrFollower refuses a write at a follower.
var ErrFollower = errors.New("replicator: this replica is a follower and takes no writes")

// Errors that callers may want to tell apart, beside those of goleveldb
// (leveldb.ErrNotFound, leveldb.ErrClosed, …), which pass through untouched.

// ErrMissed is what an iterator of [DB.Watch] yields once in place of changes that it left out
// because the reader was too slow. The loop goes on.
var ErrMissed = errors.New("replicator: changes were left out, as the reader was too slow")

// PeerError says which peer failed in which step of a session. Unwrap returns
// the cause. Its text is one printable line, whatever the peer sent; that of the
// cause need not be.
type PeerError struct {
	Peer string // address
	Op   PeerOp
	Err  error
}

func (e *PeerError) Error() string {
	return "replicator: " + string(e.Op) + " " + e.Peer + ": " + strings.TrimPrefix(session.PrintableError(e.Err), "replicator: ")
}

// Unwrap returns the cause.
func (e *PeerError) Unwrap() error { return e.Err }

// PeerOp is a part of a session.
type PeerOp string

// The parts of a session, in order.
const (
	OpDial      PeerOp = "dial"      // connecting
	OpHandshake PeerOp = "handshake" // of TLS
	OpHello     PeerOp = "hello"     // introducing one another
	OpPull      PeerOp = "pull"      // taking what the peer has
	OpServe     PeerOp = "serve"     // sending what the peer lacks
	OpLink      PeerOp = "link"      // over a connection that stays open: news, either way
	OpSession   PeerOp = "session"   // between these
)

// ErrReservedKey refuses a user key in the range that starts with ff ff, where the log and its
// index live.
var ErrReservedKey = store.ErrReservedKey

// ErrTooLarge refuses a key or value above MaxKey or MaxValue.
var ErrTooLarge = store.ErrTooLarge

// ErrClockSkew ends a pull that brought a write from too far in the future.
var ErrClockSkew = replica.ErrClockSkew

// ErrCorrupted reports that log-index, log and value of a key do not fit together: the store
// is corrupted, or was written past the wrapper. [DB.Verify] names all such keys,
// [DB.Repair] repairs them, and [DB.Adopt] logs what should stay as it is.
var ErrCorrupted = store.ErrCorrupted

// RefusedError is the reason that a peer gave for ending a session. errors.As finds it in a
// [*PeerError].
type RefusedError struct {
	Code Code
	Text string // for people; printable
}

// Code classifies why a peer ended a session. A later release may send others.
type Code int

// The codes of a [RefusedError].
const (
	CodeOther   Code = 0 // only the text says why
	CodeCluster Code = 1 // the peer belongs to another cluster
	CodeSelf    Code = 2 // the peer is this replica itself
	CodeVersion Code = 3 // no version of the protocol in common
	CodeBusy    Code = 4 // the peer has too many connections
	CodeClock   Code = 5 // we sent a version from too far in the future, see Options.MaxClockSkew
)

func (e *RefusedError) Error() string { return (&session.RefusedError{Text: e.Text}).Error() }

// As makes errors.As find a [*RefusedError].
func (e *PeerError) As(target any) bool {
	var refused *session.RefusedError
	public, ok := target.(**RefusedError)
	if !ok || !errors.As(e.Err, &refused) {
		return false
	}
	*public = &RefusedError{Code: Code(refused.Code), Text: refused.Text}
	return true
}
