package demo

import (
	"bytes"
	"slices"

	"github.com/level-replicator/replicator"
)

// signature starts the line that a server appends to a file that it edits.
const signature = "\n// edited by "

// sign appends the line of an editor.
func sign(value []byte, editor string) []byte {
	return slices.Concat(value, []byte(signature), []byte(editor))
}

// split parts a value into the file and the editors who signed it.
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

// mergeEdits is the resolver of this cluster: the file is kept, and so is the
// signature of everybody who edited it, each once and sorted. Thus no edit is
// lost and every server shows the same.
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
