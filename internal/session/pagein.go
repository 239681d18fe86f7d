package session

import (
	"bytes"
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
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

func (s *Session) gotChunk(payload []byte) error {
	if len(payload) < 2 || s.pulling == nil {
		return replica.ProtocolErrorf("an empty chunk")
	}
	p, most := &s.spool, s.params.MaxValue
	p.add(payload[1:], payload[0]&1 != 0, most)
	// A replica of an earlier release sends some values together, those of one key, say.
	if uint64(p.bytes) > 4*uint64(most)+FrameCap || len(p.values) > maxVersions {
		return fmt.Errorf("%w: %d values of %d bytes in one page, MaxValue is %d", store.ErrTooLarge, len(p.values), p.bytes, most)
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
	if p.asked > 0 {
		return s.gotWanted(keys)
	}
	if p.wanting {
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
	if len(p.keys) > 0 && (p.size+size > s.params.BatchSize || !s.sameWatermarks()) {
		if err := s.commitPages(); err != nil {
			return err
		}
	}
	p.keys = append(p.keys, keys...)
	p.bytes += came
	p.size += size
	p.watermarks = s.known
	for _, m := range marks {
		p.basis = p.basis.Raise(causal.Dot{Origin: m.Origin, Seq: m.To})
		m.To = min(m.To, s.known.Seq(causal.Covered, m.Origin))
		p.marks = append(p.marks, m)
	}
	p.basis = p.basis.Join(s.known.Vector(causal.Covered)).Join(s.cloud)
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
					err = replica.ProtocolErrorf("a write that has seen write %d of this server, which has made only %d", n, r.Seq)
				}
				if v.Stamp > latest {
					err = fmt.Errorf("%w: a write by %s is %v ahead", replica.ErrClockSkew, v.Origin.Short(), v.Stamp.Time().Sub(r.Now()))
				}
			}
			for i := range k.Versions {
				if v := &k.Versions[i]; v.Origin == r.Self && v.Seq > r.Seq {
					err = replica.ProtocolErrorf("a write %d of this server, which has made only %d", v.Seq, r.Seq)
				}
			}
			if err != nil {
				return
			}
		}
	})
	return err
}
