package session

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
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
		p.session.sendValue(value)
	}
	n := &p.session.sending
	p.session.send(FramePage, n.Frame(func(b []byte) []byte {
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

func (s *Session) gotPage(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	marks, err := s.readMarks(&d)
	if err != nil {
		return err
	}
	versions := 0
	n := d.Count(2)
	keys := make([]replica.RemoteKey, 0, min(n, maxVersions/16))
	for range n {
		k, err := s.readKey(&d)
		if err != nil {
			return err
		}
		if versions += len(k.Versions); versions > maxVersions {
			return replica.ProtocolErrorf("page of more than %d versions", maxVersions)
		}
		keys = append(keys, k)
	}
	if err := d.End(); err != nil {
		return replica.ProtocolErrorf("page: %v", err)
	}
	came, size := len(payload)+s.spool.bytes, 0
	s.spool = spool{}
	if err := s.checkKeys(keys); err != nil {
		return err
	}
	p := s.pulling
	if p.wants.asked > 0 {
		return s.gotWanted(keys)
	}
	if p.wants.begun {
		return replica.ProtocolErrorf("a page more than was asked for")
	}
	if keys, err = p.sort(keys); err != nil {
		return err
	}
	if p.repair != nil {
		return s.repairKeys(keys)
	}
	for i := range keys {
		size += keys[i].Size()
	}
	if len(p.pages.keys) > 0 && (p.pages.size+size > s.params.BatchSize || !s.sameWatermarks()) {
		if err := s.commitPages(); err != nil {
			return err
		}
	}
	p.pages.keys = append(p.pages.keys, keys...)
	p.pages.bytes += came
	p.pages.size += size
	p.pages.watermarks = s.known
	for _, m := range marks {
		p.pages.basis = p.pages.basis.Raise(causal.Dot{Origin: m.Origin, Seq: m.To})
		m.To = min(m.To, s.known.Seq(causal.Covered, m.Origin))
		p.pages.marks = append(p.pages.marks, m)
	}
	p.pages.basis = p.pages.basis.Join(s.known.Vector(causal.Covered)).Join(s.cloud)
	if size > s.params.BatchSize { // nothing else fits into its batch, so it need not wait for more
		return s.commitPages()
	}
	return nil
}

func (s *Session) readMarks(d *store.Decoder) ([]causal.Region, error) {
	n := d.Count(3)
	if n > maxMarks {
		return nil, replica.ProtocolErrorf("page with %d marks", n)
	}
	marks := make([]causal.Region, 0, n)
	for range n {
		o, ok := s.reading.Origin(d.Uint())
		if !ok {
			return nil, replica.ProtocolErrorf("page names an unknown origin")
		}
		m := causal.Region{Origin: o, From: d.Seq(), To: d.Seq()}
		if d.Err == nil && (m.From == 0 || m.From > m.To) {
			return nil, replica.ProtocolErrorf("page marks %d to %d", m.From, m.To)
		}
		marks = append(marks, m)
	}
	return marks, nil
}

func (s *Session) readKey(d *store.Decoder) (replica.RemoteKey, error) {
	k := replica.RemoteKey{Key: d.Bytes(len(d.B))}
	k.Over = len(k.Key) > s.params.MaxKey
	n := d.Count(3)
	if n > maxVersions {
		return k, replica.ProtocolErrorf("key %.40q with %d versions", k.Key, n)
	}
	k.Versions = make([]store.Version, 0, min(n, 4))
	for range n {
		var v store.Version
		flags := d.Byte()
		v.Dot = d.Dot(&s.reading)
		if v.Seq == 0 && d.Err == nil {
			return k, replica.ProtocolErrorf("key %.40q: a version without a seq", k.Key)
		}
		v.Deleted, v.NameOnly, v.Apart = flags&store.FlagDeleted != 0, flags&store.FlagNameOnly != 0, flags&store.FlagApart != 0
		if v.NameOnly && v.Apart {
			return k, replica.ProtocolErrorf("key %.40q: a version that is known and is not", k.Key)
		}
		if !v.NameOnly && !v.Apart {
			d.Body(&v, &s.reading)
			if err := s.readContent(d, flags, &v); err != nil {
				return k, err
			}
			if k.Over {
				v.Value, v.Large = nil, max(1, v.Large, uint64(len(v.Value)))
			}
		}
		if d.Err != nil {
			return k, replica.ProtocolErrorf("page: %v", d.Err)
		}
		k.Versions = append(k.Versions, v)
	}
	return k, nil
}

// readContent reads the value of a version, if it is taken here.
func (s *Session) readContent(d *store.Decoder, flags byte, v *store.Version) error {
	switch {
	case flags&store.FlagLarge != 0:
		v.Large = max(1, d.UpTo(math.MaxInt64))
	case v.Deleted:
	case flags&store.FlagChunked != 0:
		var ok bool
		if v.Value, v.Large, ok = s.spool.next(s.params.MaxValue); !ok {
			return replica.ProtocolErrorf("a chunked value without its chunks")
		}
	default:
		if v.Value = d.Bytes(len(d.B)); len(v.Value) > s.params.MaxValue {
			v.Value, v.Large = nil, uint64(len(v.Value))
		}
	}
	return nil
}

// checkKeys refuses what no honest peer would send, before any of it is stored.
func (s *Session) checkKeys(keys []replica.RemoteKey) (err error) {
	s.host.With(func(r *replica.Replica) {
		latest := causal.StampOf(r.Now().Add(r.MaxSkew))
		for _, k := range keys {
			switch {
			case store.Reserved(k.Key):
				err = replica.ProtocolErrorf("an entry for the reserved key %.40q", k.Key)
			case r.Local != nil && r.Local(k.Key):
				err = replica.ProtocolErrorf("an entry for a key that is in a local range here; all replicas of a cluster need the same Options.LocalRanges")
			}
			for i := range k.Versions {
				v := &k.Versions[i]
				if v.NameOnly {
					continue
				}
				if n := v.Context.Seq(r.Self); n > r.Seq {
					err = replica.ProtocolErrorf("a write that has seen write %d of this replica, which has made only %d", n, r.Seq)
				}
				if v.Stamp > latest {
					err = fmt.Errorf("%w: a write by %s is %v ahead", replica.ErrClockSkew, v.Origin.Short(), v.Stamp.Time().Sub(r.Now()))
				}
			}
			for i := range k.Versions {
				if v := &k.Versions[i]; v.Origin == r.Self && v.Seq > r.Seq {
					err = replica.ProtocolErrorf("a write %d of this replica, which has made only %d", v.Seq, r.Seq)
				}
			}
			if err != nil {
				return
			}
		}
	})
	return err
}
