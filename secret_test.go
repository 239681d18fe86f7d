package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGeneratedSecretsAreLongAndDiffer(t *testing.T) {
	a, b := GenerateSecret(), GenerateSecret()
	require.Len(t, a, 32)
	require.NotEqual(t, a, b)
}
