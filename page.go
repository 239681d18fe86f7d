package replicator

import "encoding/binary"

// page collects keys for one frame.
type page struct {
	session  *session
	sent     int // bytes of pages before it, of the same state
	marks    []region
	body     []byte
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

func (p *page) full() bool {
	return len(p.body) >= p.session.params.pageSize || len(p.marks) >= maxMarks/2 || p.named >= maxVersions/4
}

func (p *page) overfull() bool {
	return len(p.body) >= 3*p.session.params.pageSize || p.named >= maxVersions/2
}

// mark notes that all of a region was sent that this state has.
func (p *page) mark(o Origin, from, to uint64) {
	p.marks = append(p.marks, region{origin: o, from: from, to: to})
}

// add puts a key with its whole state into the page. Of what the peer claims only
// the names are sent.
func (p *page) add(st *view, key []byte, s state, claims vector) error {
	vs, err := readVersions(st, key, s, st)
	if err == nil {
		p.put(key, vs, claims)
	}
	return err
}

func (p *page) put(key []byte, vs []version, claims vector) {
	n := &p.session.sending
	p.body = appendBytes(p.body, key)
	p.body = binary.AppendUvarint(p.body, uint64(len(vs)))
	p.named += len(vs)
	for i := range vs {
		v := &vs[i]
		flags := byte(0)
		if v.deleted {
			flags |= flagDeleted
		}
		switch {
		case claims.has(v.dot):
			p.body = appendDot(append(p.body, flags|flagKnown), v.dot, n)
			continue
		case len(v.value) > p.session.params.pageSize:
			flags |= flagChunked
			p.session.sendChunks(v.value)
		}
		p.body = appendDot(append(p.body, flags), v.dot, n)
		p.body = appendBody(p.body, v, n)
		if flags&(flagDeleted|flagChunked) == 0 {
			p.body = appendBytes(p.body, v.value)
		}
		p.versions++
	}
	p.keys++
}

// next begins another page of the same state.
func (p *page) next() {
	p.flush()
	p.sent += len(p.body)
	p.marks, p.body, p.keys, p.named = p.marks[:0], p.body[:0], 0, 0
}

// sendChunks sends a value that is too large for a page, ahead of the page.
func (s *session) sendChunks(value []byte) {
	for len(value) > 0 {
		n := min(len(value), s.params.pageSize)
		last := byte(btoi(n == len(value)))
		s.send(frameChunk, append([]byte{last}, value[:n]...))
		value = value[n:]
	}
}

func (p *page) flush() {
	if p.keys == 0 && len(p.marks) == 0 {
		return
	}
	n := &p.session.sending
	p.session.send(framePage, n.frame(func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(len(p.marks)))
		for _, m := range p.marks {
			b = binary.AppendUvarint(b, n.number(m.origin))
			b = binary.AppendUvarint(b, m.from)
			b = binary.AppendUvarint(b, m.to)
		}
		b = binary.AppendUvarint(b, uint64(p.keys))
		return append(b, p.body...)
	}))
}
