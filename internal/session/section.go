package session

import (
	"encoding/binary"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// A join brings a replica that is far behind what it lacks in two sections: the log entries in the order of the log,
// and then the rows, keys with their values, in the order of the keys. Either is what the receiver's store takes best,
// and what the server's reads best. Most of an entry, or of a row, follows from the one before it in its frame.

// Flags of an entry and of a row.
const (
	sectionFollows byte = 1 << iota // entry: the next seq of the same origin; row: of the same origin
	sectionPlain                    // the first write of its key: no clock, no causal context
	sectionSameKey                  // the key is as long as the one before
	sectionDeleted
	sectionSameSize  // row: the value is as long as the one before
	sectionContinues // entry: the next of the same batch
	sectionAlone     // entry: a batch of its own
	sectionFlags     = 1<<iota - 1
)

// entrySection writes log entries.
type entrySection struct {
	body  []byte
	size  int // of the entries where they are stored
	n     int
	prev  store.Entry // without its key
	width int         // of that
}

// add adds an entry that is alone at its key.
func (w *entrySection) add(e *store.Entry, n *Names) {
	p := &w.prev
	flags := byte(0)
	if w.n > 0 && e.Origin == p.Origin && e.Seq == p.Seq+1 {
		flags |= sectionFollows
	}
	if e.Clock == 0 && len(e.Context) == 0 {
		flags |= sectionPlain
	}
	if w.n > 0 && len(e.Key) == w.width {
		flags |= sectionSameKey
	}
	if e.Deleted {
		flags |= sectionDeleted
	}
	switch {
	case e.Offset == 0 && e.Count == 1:
		flags |= sectionAlone
	case w.n > 0 && e.Offset == p.Offset+1 && e.Count == p.Count:
		flags |= sectionContinues
	}
	b := append(w.body, flags)
	if flags&sectionFollows == 0 {
		b = store.AppendDot(b, e.Dot, n)
	}
	if flags&(sectionAlone|sectionContinues) == 0 {
		b = binary.AppendUvarint(b, e.Offset)
		b = binary.AppendUvarint(b, e.Count)
	}
	b = binary.AppendVarint(b, int64(e.Stamp-p.Stamp))
	if flags&sectionPlain == 0 {
		b = binary.AppendUvarint(b, e.Clock)
		b = store.AppendVector(b, e.Context, n)
	}
	if flags&sectionSameKey == 0 {
		b = binary.AppendUvarint(b, uint64(len(e.Key)))
	}
	b = append(b, e.Key...)
	if !e.Deleted {
		b = binary.BigEndian.AppendUint32(b, e.Check)
	}
	w.body, w.size, w.n = b, w.size+loggedAtLeast/2+len(e.Key), w.n+1
	w.prev, w.width = *e, len(e.Key)
	w.prev.Key = nil
}

func (w *entrySection) full(most int) bool { return len(w.body) >= most || w.n >= maxVersions/4 }

// readEntries reads a frame of entries, into memory that they had before. Their keys alias it.
func readEntries(payload []byte, names *Names, entries []store.Entry) ([]store.Entry, error) {
	d, err := names.open(payload)
	if err != nil {
		return nil, err
	}
	entries = entries[:0]
	var p store.Entry
	for len(d.B) > 0 && d.Err == nil {
		if len(entries) == maxVersions {
			return nil, replica.ProtocolErrorf("more than %d entries in a frame", maxVersions)
		}
		e, flags := store.Entry{}, d.Byte()
		e.Deleted = flags&sectionDeleted != 0
		if first := len(entries) == 0; flags&^sectionFlags != 0 || flags&sectionSameSize != 0 ||
			first && flags&(sectionFollows|sectionSameKey|sectionContinues) != 0 || flags&sectionAlone != 0 && flags&sectionContinues != 0 {
			return nil, replica.ProtocolErrorf("an entry with flags %x", flags)
		}
		if e.Dot = (causal.Dot{Origin: p.Origin, Seq: p.Seq + 1}); flags&sectionFollows == 0 {
			e.Dot = d.Dot(names)
		}
		switch {
		case flags&sectionAlone != 0:
			e.Count = 1
		case flags&sectionContinues != 0:
			e.Offset, e.Count = p.Offset+1, p.Count
		default:
			e.Offset, e.Count = d.Seq(), d.Seq()
		}
		e.Stamp = p.Stamp + causal.Stamp(d.Int())
		if flags&sectionPlain == 0 {
			e.Clock = d.UpTo(store.MaxClock)
			e.Context = d.Vector(names)
		}
		width := len(p.Key)
		if flags&sectionSameKey == 0 {
			width = int(d.UpTo(uint64(len(d.B))))
		}
		e.Key = d.Take(width)
		if !e.Deleted {
			e.Check = d.Uint32()
		}
		d.CheckVersion(&e.Version)
		if d.Err == nil && e.Seq > causal.MaxSeq {
			d.Fail(store.ErrTrailing)
		}
		entries = append(entries, e)
		p = e
	}
	if d.Err != nil {
		return nil, replica.ProtocolErrorf("entries: %v", d.Err)
	}
	return entries, nil
}

// rowSection writes rows.
type rowSection struct {
	body  []byte
	keys  int // bytes of whole keys
	n     int
	prev  store.Version
	key   []byte // of the row before
	value int    // and the length of its value
}

func (w *rowSection) add(key []byte, v *store.Version, n *Names) {
	flags := byte(0)
	if w.n > 0 && v.Origin == w.prev.Origin {
		flags |= sectionFollows
	}
	if v.Clock == 0 && len(v.Context) == 0 {
		flags |= sectionPlain
	}
	if w.n > 0 && len(key) == len(w.key) {
		flags |= sectionSameKey
	}
	if v.Deleted {
		flags |= sectionDeleted
	} else if w.n > 0 && len(v.Value) == w.value {
		flags |= sectionSameSize
	}
	b := append(w.body, flags)
	if flags&sectionFollows == 0 {
		b = binary.AppendUvarint(b, n.Number(v.Origin))
	}
	b = binary.AppendUvarint(b, v.Seq)
	if flags&sectionPlain == 0 {
		b = binary.AppendUvarint(b, v.Clock)
		b = store.AppendVector(b, v.Context, n)
	}
	shared := 0
	for shared < min(len(key), len(w.key)) && key[shared] == w.key[shared] {
		shared++
	}
	b = binary.AppendUvarint(b, uint64(shared))
	if flags&sectionSameKey == 0 {
		b = binary.AppendUvarint(b, uint64(len(key)-shared))
	}
	b = append(b, key[shared:]...)
	if !v.Deleted {
		if flags&sectionSameSize == 0 {
			b = binary.AppendUvarint(b, uint64(len(v.Value)))
		}
		b, w.value = append(b, v.Value...), len(v.Value)
	}
	w.body, w.n, w.keys = b, w.n+1, w.keys+len(key)
	w.key = append(w.key[:0], key...)
	w.prev = *v
}

// size is what the rows take where they are read.
func (w *rowSection) size() int { return len(w.body) + w.keys }

// readRows reads a frame of rows, into memory that they had before. Their values alias the frame.
func readRows(payload []byte, names *Names, rows []replica.Row) ([]replica.Row, error) {
	d, err := names.open(payload)
	if err != nil {
		return nil, err
	}
	rows = rows[:0]
	var p replica.Row
	var room []byte // of keys
	keys, size := 0, 0
	for len(d.B) > 0 && d.Err == nil {
		if len(rows) == maxVersions {
			return nil, replica.ProtocolErrorf("more than %d rows in a frame", maxVersions)
		}
		flags := d.Byte()
		v := store.Version{Deleted: flags&sectionDeleted != 0}
		if flags&^sectionFlags != 0 || flags&(sectionContinues|sectionAlone) != 0 || v.Deleted && flags&sectionSameSize != 0 ||
			len(rows) == 0 && flags&(sectionFollows|sectionSameKey|sectionSameSize) != 0 {
			return nil, replica.ProtocolErrorf("a row with flags %x", flags)
		}
		if v.Origin = p.Version.Origin; flags&sectionFollows == 0 {
			var ok bool
			if v.Origin, ok = names.Origin(d.Uint()); !ok {
				return nil, replica.ProtocolErrorf("a row names an unknown origin")
			}
		}
		v.Seq = d.Seq()
		if flags&sectionPlain == 0 {
			v.Clock = d.UpTo(store.MaxClock)
			v.Context = d.Vector(names)
		}
		shared := int(d.UpTo(uint64(len(p.Key))))
		width := len(p.Key) - shared
		if flags&sectionSameKey == 0 {
			width = int(d.UpTo(uint64(len(d.B))))
		}
		rest := d.Take(width)
		if keys += shared + len(rest); keys > FrameCap {
			return nil, replica.ProtocolErrorf("rows with keys of more than %d bytes", FrameCap)
		}
		row := replica.Row{Version: v}
		room, row.Key = keep(room, p.Key[:min(shared, len(p.Key))], rest)
		if !v.Deleted {
			if flags&sectionSameSize == 0 {
				size = int(d.UpTo(uint64(len(d.B))))
			}
			row.Version.Value = d.Take(size)
		}
		d.CheckVersion(&row.Version)
		rows = append(rows, row)
		p = row
	}
	if d.Err != nil {
		return nil, replica.ProtocolErrorf("rows: %v", d.Err)
	}
	return rows, nil
}
