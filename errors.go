package replicator

import "errors"

// ErrReservedKey refuses a user key in the range that starts with ff ff,
// where the log and its index live.
var ErrReservedKey = errors.New("replicator: key is in the reserved range (ff ff …)")

// ErrTooLarge refuses a key or value above MaxKey or MaxValue.
var ErrTooLarge = errors.New("replicator: key or value is too large")

// ErrFailed refuses writes after the store failed to write once: goleveldb
// could let the failed write replace a later one. Close the handle and open
// it again. The write that failed may or may not be there then.
//
// A write that fails for want of a file handle (syscall.EMFILE, syscall.ENFILE) is
// no such failure: nothing of it was written, Status.Starved says why, and writes
// succeed again once there are handles.
var ErrFailed = errors.New("replicator: the store failed to write; close the database and open it again")

// ErrFollower refuses a write at a follower.
var ErrFollower = errors.New("replicator: this server is a follower and takes no writes")

// ErrClockSkew ends a pull that brought a write from too far in the future.
var ErrClockSkew = errors.New("replicator: a write is stamped too far in the future; check the clocks")
