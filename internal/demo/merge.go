package demo

import (
	"bytes"
	"slices"

	"github.com/level-replicator/replicator"
)

// signature starts the line that a replica appends to a file that it edits.
const signature = "\n// edited by "

// sign appends the line of an editor.
func sign(value []byte, editor string) []byte {
	return slices.Concat(value, []byte(signature), []byte(editor))
}

// split returns the file of a value and the editors that signed it, sorted.
func split(value []byte) (file []byte, editors []string) {
	for {
		at := bytes.LastIndex(value, []byte(signature))
		if at < 0 || bytes.IndexByte(value[at+1:], '\n') >= 0 {
			slices.Sort(editors)
			return value, slices.Compact(editors)
		}
		editors = append(editors, string(value[at+len(signature):]))
		value = value[:at]
	}
}

// mergeEdits is the resolver of this cluster. It keeps the file and the signatures of all
// editors, each once and sorted, so no edit is lost and all replicas resolve to the same.
func mergeEdits(key []byte, a, b replicator.Version) replicator.Version {
	fileA, editorsA := split(a.Value)
	fileB, editorsB := split(b.Value)
	if a.Deleted || b.Deleted || !bytes.Equal(fileA, fileB) {
		return replicator.HighestClock(key, a, b)
	}
	editors := append(editorsA, editorsB...)
	slices.Sort(editors)
	merged := fileA
	for _, e := range slices.Compact(editors) {
		merged = sign(merged, e)
	}
	return replicator.Version{Value: merged}
}
