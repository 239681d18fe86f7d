package replicator

import "encoding/binary"

// page collects keys for one frame.
type page struct {
	session  *session
	sent     int // bytes of pages before it, of the same state
	marks    []region
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
const maxBody = frameCap / 4

// size is all that the page brings, in its frame and ahead of it.
func (p *page) size() int { return len(p.body) + p.ahead }

func (p *page) full() bool {
	return p.size() >= p.session.params.pageSize || len(p.marks) >= maxMarks/2 || p.named >= maxVersions/4
}

func (p *page) overfull() bool {
	return p.size() >= 3*p.session.params.pageSize || p.named >= maxVersions/2
}

// mark notes that all of a region was sent that this state has.
func (p *page) mark(o Origin, from, to uint64) {
	if from <= to {
		p.marks = append(p.marks, region{origin: o, from: from, to: to})
	}
}

// put puts a key with its whole state into the page.
func (p *page) put(key []byte, vs []version) {
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
		case v.known:
			p.body = appendDot(append(p.body, flags|flagKnown), v.dot, n)
			continue
		case v.apart:
			p.body = appendDot(append(p.body, flags|flagApart), v.dot, n)
			continue
		case v.large > 0:
			p.session.kept = true
			p.body = appendDot(append(p.body, flags|flagLarge), v.dot, n)
			p.body = appendBody(p.body, v, n)
			p.body = binary.AppendUvarint(p.body, v.large)
			continue
		case len(v.value) > p.session.params.pageSize || len(v.value) > 0 && len(p.body)+len(v.value) > maxBody:
			flags |= flagChunked
			p.values = append(p.values, v.value)
			p.ahead += len(v.value)
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
	p.sent += p.size()
	p.marks, p.body, p.values, p.ahead, p.keys, p.named = p.marks[:0], p.body[:0], nil, 0, 0, 0
}

func (p *page) flush() {
	if p.keys == 0 && len(p.marks) == 0 {
		return
	}
	for _, value := range p.values {
		p.session.sendValue(value)
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

// queued is something to be sent in its turn: a frame, or a value that is cut into
// chunks only then, so that it is in memory once.
type queued struct {
	frame
	value []byte
}

// sendValue sends a value that is too large for a page, ahead of the page.
func (s *session) sendValue(value []byte) { s.queue = append(s.queue, queued{value: value}) }

// sendQueued sends what comes next of the queue, about a page of it.
func (s *session) sendQueued() {
	for room := s.params.pageSize; len(s.queue) > 0 && room > 0; {
		q := &s.queue[0]
		if len(q.value) == 0 {
			s.out = append(s.out, q.frame)
			room -= len(q.payload)
		} else {
			n := min(len(q.value), s.params.pageSize)
			last := byte(btoi(n == len(q.value)))
			s.out = append(s.out, frame{frameChunk, append([]byte{last}, q.value[:n]...)})
			room -= n
			if q.value = q.value[n:]; last == 0 {
				continue
			}
		}
		*q = queued{}
		s.queue = s.queue[1:]
	}
}

// queuedBytes is what waits to be sent.
func (s *session) queuedBytes() (n int) {
	for _, f := range s.out {
		n += len(f.payload)
	}
	for i := range s.queue {
		n += len(s.queue[i].payload) + len(s.queue[i].value)
	}
	return n
}
