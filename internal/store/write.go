package store

// WriteOverhead is what log entry and log-index take beside key and value, with a
// context of a few entries.
const WriteOverhead = 160

// Write is one operation of a caller's batch.
type Write struct {
	Key, Value []byte
	Deleted    bool
}

func SizeOf(writes []Write) (n int) {
	for i := range writes {
		n += len(writes[i].Value) + 4*len(writes[i].Key) + WriteOverhead
	}
	return n
}
