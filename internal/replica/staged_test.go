package replica

import (
	"encoding/binary"
	"testing"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

func TestStagedKeysOfALargeBatchLeaveNoMemoryBehind(t *testing.T) {
	var s stagedKeys
	for i := range uint32(20_000) {
		s.add(stagedKey{key: binary.BigEndian.AppendUint32(nil, i)})
	}
	require.NotNil(t, s.find(binary.BigEndian.AppendUint32(nil, 19_999)))
	s.reset()
	require.LessOrEqual(t, cap(s.list), 2*store.SlabMost)
	require.Nil(t, s.find(binary.BigEndian.AppendUint32(nil, 19_999)))
}
