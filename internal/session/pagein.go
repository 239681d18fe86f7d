package session

import (
	"fmt"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

func (s *Session) gotChunk(payload []byte) error {
	if len(payload) < 2 || s.Pulling == nil {
		return replica.ProtocolErrorf("an empty chunk")
	}
	last, part := payload[0]&1 != 0, payload[1:]
	if n := len(s.spool); n == 0 || s.spoolEnded {
		s.spool = append(s.spool, spooled{})
	}
	s.spoolEnded = last
	v := &s.spool[len(s.spool)-1]
	if v.size += uint64(len(part)); v.size <= uint64(s.Params.MaxValue) {
		v.parts = append(v.parts, part)
		s.spooled += len(part)
	} else {
		for _, part := range v.parts {
			s.spooled -= len(part)
		}
		v.parts = nil
	}
	// A server of before sends some values together, those of one key, say.
	if uint64(s.spooled) > 4*uint64(s.Params.MaxValue)+FrameCap || len(s.spool) > maxVersions {
		return fmt.Errorf("%w: %d values of %d bytes in one page, MaxValue is %d", store.ErrTooLarge, len(s.spool), s.spooled, s.Params.MaxValue)
	}
	return nil
}

func (s *Session) gotPage(payload []byte) error {
	d, err := s.Reading.open(payload)
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
	came, size := len(payload)+s.spooled, 0
	s.spool, s.spooled = nil, 0
	if err := s.checkKeys(keys); err != nil {
		return err
	}
	p := s.Pulling
	if p.asked > 0 {
		return s.gotWanted(keys)
	}
	if p.wanting {
		return replica.ProtocolErrorf("a page more than was asked for")
	}
	if keys, err = p.sort(keys); err != nil {
		return err
	}
	if p.Repair != nil {
		return s.repairKeys(keys)
	}
	for i := range keys {
		size += keys[i].Size()
	}
	if len(p.keys) > 0 && (p.size+size > s.Params.BatchSize || !s.sameWatermarks()) {
		if err := s.commitPages(); err != nil {
			return err
		}
	}
	p.keys = append(p.keys, keys...)
	p.bytes += came
	p.size += size
	p.watermarks = s.Known
	for _, m := range marks {
		p.basis = p.basis.Raise(causal.Dot{Origin: m.Origin, Seq: m.To})
		m.To = min(m.To, s.Known.Seq(causal.Covered, m.Origin))
		p.marks = append(p.marks, m)
	}
	p.basis = p.basis.Join(s.Known.Vector(causal.Covered)).Join(s.theirCloud)
	if size > s.Params.BatchSize { // nothing else fits into its batch, so it need not wait for more
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
		o, ok := s.Reading.Origin(d.Uint())
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
	k.Over = len(k.Key) > s.Params.MaxKey
	n := d.Count(3)
	if n > maxVersions {
		return k, replica.ProtocolErrorf("key %.40q with %d versions", k.Key, n)
	}
	k.Versions = make([]store.Version, 0, min(n, 4))
	for range n {
		var v store.Version
		flags := d.Byte()
		v.Dot = d.Dot(&s.Reading)
		if v.Seq == 0 && d.Err == nil {
			return k, replica.ProtocolErrorf("key %.40q: a version without a seq", k.Key)
		}
		v.Deleted, v.NameOnly, v.Apart = flags&store.FlagDeleted != 0, flags&store.FlagNameOnly != 0, flags&store.FlagApart != 0
		if v.NameOnly && v.Apart {
			return k, replica.ProtocolErrorf("key %.40q: a version that is known and is not", k.Key)
		}
		if !v.NameOnly && !v.Apart {
			d.Body(&v, &s.Reading)
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
