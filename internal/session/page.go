package session

import (
	"encoding/binary"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// page collects keys for one frame.
type page struct {
	session  *Session
	sent     int // bytes of pages before it, of the same state
	marks    []causal.Region
	body     []byte
	values   [][]byte // that go ahead of it in chunks,
	ahead    int      // and their bytes
	keys     int
	versions int // of all pages of the state
	named    int // versions, also those of which only the dot is sent
}

// maxMarks and maxVersions bound what a page may hold, in memory far more than on
// the wire. A page is full long before.
const (
	maxMarks    = 1 << 13
	maxVersions = 1 << 16
)

// maxBody is how large a page's frame may become before values go ahead of it, however
// small they are: a key has its whole state in one page, and the frame has a bound.
const maxBody = FrameCap / 4

// size is all that the page brings, in its frame and ahead of it.
func (p *page) size() int { return len(p.body) + p.ahead }

func (p *page) full() bool {
	return p.size() >= p.session.params.PageSize || len(p.marks) >= maxMarks/2 || p.named >= maxVersions/4
}

func (p *page) overfull() bool {
	return p.size() >= 3*p.session.params.PageSize || p.named >= maxVersions/2
}

// mark notes that all of a region was sent that this state has.
func (p *page) mark(o causal.Origin, from, to uint64) {
	if from <= to {
		p.marks = append(p.marks, causal.Region{Origin: o, From: from, To: to})
	}
}

// put puts a key with its whole state into the page.
func (p *page) put(key []byte, vs []store.Version) {
	n := &p.session.sending
	p.body = store.AppendBytes(p.body, key)
	p.body = binary.AppendUvarint(p.body, uint64(len(vs)))
	p.named += len(vs)
	for i := range vs {
		v := &vs[i]
		flags := byte(0)
		if v.Deleted {
			flags |= store.FlagDeleted
		}
		switch {
		case v.NameOnly:
			p.body = store.AppendDot(append(p.body, flags|store.FlagNameOnly), v.Dot, n)
			continue
		case v.Apart:
			p.body = store.AppendDot(append(p.body, flags|store.FlagApart), v.Dot, n)
			continue
		case v.Large > 0:
			p.session.result.Withheld = true
			p.body = store.AppendDot(append(p.body, flags|store.FlagLarge), v.Dot, n)
			p.body = store.AppendBody(p.body, v, n)
			p.body = binary.AppendUvarint(p.body, v.Large)
			continue
		case len(v.Value) > p.session.params.PageSize || len(v.Value) > 0 && len(p.body)+len(v.Value) > maxBody:
			flags |= store.FlagChunked
			p.values = append(p.values, v.Value)
			p.ahead += len(v.Value)
		}
		p.body = store.AppendDot(append(p.body, flags), v.Dot, n)
		p.body = store.AppendBody(p.body, v, n)
		if flags&(store.FlagDeleted|store.FlagChunked) == 0 {
			p.body = store.AppendBytes(p.body, v.Value)
		}
		p.versions++
	}
	p.keys++
}

// next begins another page of the same state.
func (p *page) next() {
	p.flush()
	p.sent += p.size()
	p.marks, p.body, p.values, p.ahead, p.keys, p.named = p.marks[:0], p.body[:0], nil, 0, 0, 0
}

func (p *page) flush() {
	if p.keys == 0 && len(p.marks) == 0 {
		return
	}
	for _, value := range p.values {
		p.session.outbox.sendValue(value)
	}
	n := &p.session.sending
	p.session.outbox.send(FramePage, n.Frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(p.marks)))
		for _, m := range p.marks {
			b = binary.AppendUvarint(b, n.Number(m.Origin))
			b = binary.AppendUvarint(b, m.From)
			b = binary.AppendUvarint(b, m.To)
		}
		b = binary.AppendUvarint(b, uint64(p.keys))
		return append(b, p.body...)
	}))
}
