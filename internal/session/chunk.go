package session

import (
	"bytes"
	"fmt"

	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// spool collects the values that come in chunks ahead of their page.
type spool struct {
	values []spooled
	bytes  int  // of them that are kept
	ended  bool // the last of them is whole
}

// spooled is a value that comes in chunks. Of one that is larger than is taken here only
// the size is kept.
type spooled struct {
	parts [][]byte
	size  uint64
}

func (p *pulling) gotChunk(payload []byte) error {
	if len(payload) < 2 {
		return replica.ProtocolErrorf("an empty chunk")
	}
	most := p.session.params.MaxValue
	p.spool.add(payload[1:], payload[0]&1 != 0, most)
	// A replica of an earlier release sends some values together, those of one key, say.
	if n := len(p.spool.values); uint64(p.spool.bytes) > 4*uint64(most)+FrameCap || n > maxVersions {
		return fmt.Errorf("%w: %d values of %d bytes in one page, MaxValue is %d", store.ErrTooLarge, n, p.spool.bytes, most)
	}
	return nil
}

// add takes in a chunk of a value of which at most some bytes are kept.
func (p *spool) add(part []byte, last bool, most int) {
	if len(p.values) == 0 || p.ended {
		p.values = append(p.values, spooled{})
	}
	p.ended = last
	v := &p.values[len(p.values)-1]
	if v.size += uint64(len(part)); v.size <= uint64(most) {
		v.parts = append(v.parts, part)
		p.bytes += len(part)
		return
	}
	for _, part := range v.parts {
		p.bytes -= len(part)
	}
	v.parts = nil
}

// next takes the next value out, or returns its size if it is too large. It reports whether there is one.
func (p *spool) next(most int) (value []byte, large uint64, ok bool) {
	if len(p.values) == 0 || len(p.values) == 1 && !p.ended {
		return nil, 0, false
	}
	if v := &p.values[0]; v.size > uint64(most) {
		large = v.size
	} else {
		value = bytes.Join(v.parts, nil)
		v.parts = nil
	}
	p.values = p.values[1:]
	return value, large, true
}
