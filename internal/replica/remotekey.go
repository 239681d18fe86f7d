package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/store"
)

// RemoteKey is the state of a key at a peer.
type RemoteKey struct {
	Key      []byte
	Versions []store.Version
	Over     bool // the key is larger than is taken here
}

// Lacks reports whether a value of a key is not here.
func (k *RemoteKey) Lacks() bool {
	return slices.ContainsFunc(k.Versions, func(v store.Version) bool { return !v.Whole() })
}

// Begins reports whether a key was written first in its writer's batch: the log is
// read in reverse, so the batch ends with it.
func (k *RemoteKey) Begins() bool {
	return !slices.ContainsFunc(k.Versions, func(v store.Version) bool { return !v.NameOnly && v.Offset > 0 })
}

// Size estimates what a key comes to in a batch, with log and index.
func (k *RemoteKey) Size() int {
	n := 4 * len(k.Key)
	for i := range k.Versions {
		v := &k.Versions[i]
		n += store.WriteOverhead + 8*len(v.Context) + len(v.Value)
		if len(k.Versions) > 1 {
			n += len(v.Value)
		}
	}
	return n
}
