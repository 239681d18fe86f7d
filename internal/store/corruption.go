package store

import (
	"errors"
	"fmt"
)

// ErrCorrupted says that log-index, log and value of a key do not fit together: the
// store is corrupted, or was written past the wrapper. [DB.Verify] names all such keys,
// [DB.Repair] repairs them, and [DB.Adopt] logs what shall stay as it is.
var ErrCorrupted = errors.New("replicator: the database is corrupted, run Verify")

// CorruptionError says what is wrong with one version (R4).
type CorruptionError struct {
	key     []byte
	Problem string
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("%v: key %.40q: %s", ErrCorrupted, e.key, e.Problem)
}

func (e *CorruptionError) Unwrap() error { return ErrCorrupted }

// Corrupted returns the error that a version of a key does not fit together.
func Corrupted(key []byte, format string, args ...any) error {
	return &CorruptionError{key, fmt.Sprintf(format, args...)}
}
