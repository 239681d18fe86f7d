package store

import (
	"errors"
	"fmt"
)

// ErrCorrupted says that log-index, log and value of a key do not fit together: the
// store is damaged, or was written past the wrapper. [DB.Verify] names all such keys,
// [DB.Repair] mends them, and [DB.Adopt] logs what is to stay as it is.
var ErrCorrupted = errors.New("replicator: the database is damaged, run Verify")

// CorruptionError tells what is wrong with one version.
type CorruptionError struct {
	key     []byte
	Problem string
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("%v: key %.40q: %s", ErrCorrupted, e.key, e.Problem)
}

func (e *CorruptionError) Unwrap() error { return ErrCorrupted }

func Corrupted(key []byte, format string, args ...any) error {
	return &CorruptionError{key, fmt.Sprintf(format, args...)}
}
