package replicator_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
)

// spelt returns dots as tokens and cursors have them.
func spelt(dots ...replicator.VersionID) (b []byte) {
	for _, d := range dots {
		b = binary.AppendUvarint(append(b, d.Origin[:]...), d.Seq)
	}
	return b
}

// tokenOf returns the bytes of a token.
func tokenOf(dots ...replicator.VersionID) []byte { return append([]byte{1}, spelt(dots...)...) }

// cursorOf returns those of a cursor of some cluster, whose name is hashed.
func cursorOf(cluster []byte, dots ...replicator.VersionID) []byte {
	b := append(append([]byte{1}, cluster...), 0, byte(len(dots)))
	b = append(b, spelt(dots...)...)
	return binary.BigEndian.AppendUint32(b, store.Checksum(b))
}

func TestTokensAndCursorsSayWhatIsWrongWithThem(t *testing.T) {
	a, b := replicator.VersionID{Origin: replicator.Origin{1}, Seq: 7}, replicator.VersionID{Origin: replicator.Origin{2}, Seq: 1}
	parseToken := func(text string) error { _, err := replicator.ParseToken(text); return err }
	parseCursor := func(text string) error { _, err := replicator.ParseCursor(text); return err }
	for _, kind := range []struct {
		name  string
		is    error
		parse func(text string) error
		of    func(dots ...replicator.VersionID) []byte
	}{
		{"token", replicator.ErrToken, parseToken, tokenOf},
		{"cursor", replicator.ErrCursor, parseCursor, func(dots ...replicator.VersionID) []byte { return cursorOf(make([]byte, 8), dots...) }},
	} {
		good := kind.of(a, b)
		text := base64.RawURLEncoding.EncodeToString(good)
		require.NoError(t, kind.parse(text))
		for what, bad := range map[string]string{
			"its text is cut short or damaged":                         text + "\n",
			"its text is cut short or damaged: illegal base64 data at": "!" + text,
			"it is of version 2, and this release knows version 1":     base64.RawURLEncoding.EncodeToString(append([]byte{2}, good[1:]...)),
			"it is cut short or damaged":                               base64.RawURLEncoding.EncodeToString(good[:len(good)-5]),
			"its entries are not in order":                             base64.RawURLEncoding.EncodeToString(kind.of(b, a)),
		} {
			err := kind.parse(bad)
			require.ErrorIs(t, err, kind.is)
			require.ErrorContains(t, err, "replicator: the "+kind.name+" cannot be used: "+what)
		}
	}
	require.EqualError(t, parseToken(""), "replicator: the token cannot be used: it is empty")
	require.NoError(t, parseCursor(""), "the beginning")
}

func TestTokenOfWritesThatWereNeverMadeIsRefused(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a := c.start("a")
		put(t, a, "k", "v")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		forged := replicator.VersionID{Origin: a.Status().Origin, Seq: 99}
		var token replicator.Token
		require.NoError(t, token.UnmarshalBinary(tokenOf(forged)))
		err := a.WaitFor(ctx, token)
		require.ErrorIs(t, err, replicator.ErrToken)
		require.ErrorContains(t, err, "write 99 of this replica, which has made only 1")

		b, err := a.Cursor().MarshalBinary()
		require.NoError(t, err)
		var cursor replicator.Cursor
		require.NoError(t, cursor.UnmarshalBinary(cursorOf(b[1:9], forged)))
		var errs []error
		for _, err := range a.Changes(ctx, cursor, nil) {
			errs = append(errs, err)
		}
		require.Len(t, errs, 1)
		require.ErrorIs(t, errs[0], replicator.ErrCursor)
		require.NotErrorIs(t, errs[0], replicator.ErrToken)
	})
}
