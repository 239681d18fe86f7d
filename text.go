package replicator

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// Tokens and cursors are handed to clients, as bytes or as text. What comes back may be anything. Of what is wrong with it
// these say why; whoever calls them says of which of the two, with the error that its callers know.

var (
	errCutShort = errors.New("it is cut short or damaged")
	errDisorder = errors.New("its entries are not in order")
)

// encodeText returns bytes as letters, digits, '-' and '_'.
func encodeText(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// decodeText reads what encodeText returned, and nothing else.
func decodeText(text []byte) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(text))
	if i := bytes.IndexAny(text, "\r\n"); i >= 0 { // which base64 skips
		err = base64.CorruptInputError(i)
	}
	if err != nil {
		return nil, fmt.Errorf("its text is cut short or damaged: %w", err)
	}
	return b, nil
}

// checkVersion refuses what another release wrote.
func checkVersion(b []byte, known byte) error {
	switch {
	case len(b) == 0:
		return errors.New("it is empty")
	case b[0] != known:
		return fmt.Errorf("it is of version %d, and this release knows version %d", b[0], known)
	}
	return nil
}

// readSpelt reads n dots of a vector, with their origins spelt out, or all that there are if n is negative.
func readSpelt(d *store.Decoder, n int) (v causal.Vector, err error) {
	for i := 0; i < n || n < 0 && len(d.B) > 0; i++ {
		ok := false
		switch v, ok = d.Spelt(v); {
		case d.Err != nil:
			return nil, errCutShort
		case !ok:
			return nil, errDisorder
		}
	}
	return v, nil
}
