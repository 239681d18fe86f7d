package replica

import (
	"errors"
	"fmt"
)

// ErrClockSkew ends a pull that brought a write from too far in the future.
var ErrClockSkew = errors.New("replicator: a write is stamped too far in the future; check the clocks")

// ProtocolError is what a peer must not send.
type ProtocolError string

func (e ProtocolError) Error() string { return "replicator: protocol error: " + string(e) }

// ProtocolErrorf returns a ProtocolError.
func ProtocolErrorf(format string, args ...any) error {
	return ProtocolError(fmt.Sprintf(format, args...))
}
