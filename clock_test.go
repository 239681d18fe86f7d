package replicator

import (
	"testing"

	"github.com/level-replicator/replicator/internal/fuzzing"
	"github.com/stretchr/testify/require"
)

func FuzzToken(f *testing.F) {
	c := &fuzzing.Corpus{F: f}
	c.Add("AQ")
	c.Add("AQAAAAAAAAAAAAAAAAAAAAAB")
	fuzzing.Run1(c, func(t testing.TB, text string) {
		if token, err := ParseToken(text); err == nil {
			require.Equal(t, text, token.String())
		}
	})
}
