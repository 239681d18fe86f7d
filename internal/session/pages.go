package session

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// pages are the keys of pages that wait to be committed together.
type pages struct {
	keys       []replica.RemoteKey
	bytes      int              // of the frames that they came in
	size       int              // of the batch that they will make, about
	marks      []causal.Region  // what they say was sent whole
	basis      causal.Vector    // what the peer covered or held then
	watermarks causal.Knowledge // of the peer, in the state that they are from
}

func (p *pulling) gotPage(payload []byte) error {
	marks, keys, err := p.readPage(payload)
	if err != nil {
		return err
	}
	came := len(payload) + p.spool.bytes
	p.spool = spool{}
	if p.question == FramePush && p.session.stream.deaf {
		return nil
	}
	if err := checkKeys(p.session.host, keys); err != nil {
		return err
	}
	if p.question == FramePush {
		p.count(keys)
	}
	if p.wants.asked > 0 {
		return p.gotWanted(keys)
	}
	if p.wants.begun {
		return replica.ProtocolErrorf("a page more than was asked for")
	}
	if keys, err = p.sort(keys); err != nil {
		return err
	}
	switch {
	case p.repair != nil:
		return p.repair.takeKeys(keys)
	case p.join != nil:
		return p.join.gotKeys(marks, keys)
	case p.asksJoin: // it is a pull like others, after all
		p.leaveJoin()
	}
	return p.addPage(marks, keys, came)
}

// count counts what a push brought.
func (p *pulling) count(keys []replica.RemoteKey) {
	for i := range keys {
		for j := range keys[i].Versions {
			if v := &keys[i].Versions[j]; !v.NameOnly {
				p.versions++
				p.relayed += int(store.Btoi(v.Origin != p.session.theirs.Origin))
			}
		}
	}
}

// addPage has the keys of a page wait for the next commit. came is how many bytes it came in.
func (p *pulling) addPage(marks []causal.Region, keys []replica.RemoteKey, came int) error {
	s := p.session
	size := 0
	for i := range keys {
		size += keys[i].Size()
	}
	if len(p.pages.keys) > 0 && (p.pages.size+size > s.params.BatchSize || !p.sameWatermarks()) {
		if err := p.commitPages(); err != nil {
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
		return p.commitPages()
	}
	return nil
}

// sort takes from the keys of a page those whose values are to be asked for, and notes
// what is not taken here.
func (p *pulling) sort(keys []replica.RemoteKey) ([]replica.RemoteKey, error) {
	var err error
	return slices.DeleteFunc(keys, func(k replica.RemoteKey) bool {
		p.back.Set(k)
		switch {
		case k.Over:
			return true
		case slices.ContainsFunc(k.Versions, func(v store.Version) bool { return v.Apart }):
			err = errors.Join(err, p.setApart(k))
			return true
		}
		return p.repair != nil && p.repair.kind != forCompare && k.Lacks()
	}), err
}

// sameWatermarks reports whether the pages that wait are of a state with the same watermarks
// as the one that the peer speaks of now.
func (p *pulling) sameWatermarks() bool {
	return p.pages.watermarks.WatermarkRev == p.session.known.WatermarkRev
}

// mergeSlice is how many keys of a pull that is not one batch anyway are merged at a time:
// that takes about 2 ms.
const mergeSlice = 128

// merging are the pages that wait, to be merged.
func (p *pulling) merging() chunkedCommit {
	m := chunkedCommit{n: len(p.pages.keys), count: &p.session.result.Pulled, ends: func(i int) bool { return p.pages.keys[i].Begins() }}
	if p.torn {
		m.most = mergeSlice
	}
	if m.n > 0 {
		m.first = func(t *replica.Txn) error { t.JoinWatermarks(&p.pages.watermarks); return nil }
	}
	m.step = func(t *replica.Txn, i int) (int, error) {
		return t.Merge(p.pages.keys[i].Key, p.pages.keys[i].Versions, &p.pages.watermarks)
	}
	return m
}

// flush commits the pages that wait, if there are any.
func (p *pulling) flush() error {
	if len(p.pages.keys) == 0 {
		return nil
	}
	return p.commitPages()
}

// commitPages commits what has come so far of a pull that is not whole.
func (p *pulling) commitPages() error {
	s := p.session
	p.torn = true
	m := p.merging()
	if err := m.commit(s.host); err != nil {
		return err
	}
	s.host.With(func(r *replica.Replica) { r.Remember(p.pages.marks, p.pages.basis, &p.back, &s.known) })
	p.pages = pages{}
	return nil
}

// readPage reads the marks and the keys of a page.
func (p *pulling) readPage(payload []byte) ([]causal.Region, []replica.RemoteKey, error) {
	d, err := p.session.reading.open(payload)
	if err != nil {
		return nil, nil, err
	}
	marks, err := readMarks(&d, &p.session.reading)
	if err != nil {
		return nil, nil, err
	}
	versions := 0
	n := d.Count(2)
	keys := make([]replica.RemoteKey, 0, min(n, maxVersions/16))
	for range n {
		k, err := p.readKey(&d)
		if err != nil {
			return nil, nil, err
		}
		if versions += len(k.Versions); versions > maxVersions {
			return nil, nil, replica.ProtocolErrorf("page of more than %d versions", maxVersions)
		}
		keys = append(keys, k)
	}
	if err := d.End(); err != nil {
		return nil, nil, replica.ProtocolErrorf("page: %v", err)
	}
	return marks, keys, nil
}

func readMarks(d *store.Decoder, names *Names) ([]causal.Region, error) {
	n := d.Count(3)
	if n > maxMarks {
		return nil, replica.ProtocolErrorf("page with %d marks", n)
	}
	marks := make([]causal.Region, 0, n)
	for range n {
		o, ok := names.Origin(d.Uint())
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

func (p *pulling) readKey(d *store.Decoder) (replica.RemoteKey, error) {
	s := p.session
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
			if err := p.readContent(d, flags, &v); err != nil {
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
func (p *pulling) readContent(d *store.Decoder, flags byte, v *store.Version) error {
	most := p.session.params.MaxValue
	switch {
	case flags&store.FlagLarge != 0:
		v.Large = max(1, d.UpTo(math.MaxInt64))
	case v.Deleted:
	case flags&store.FlagChunked != 0:
		var ok bool
		if v.Value, v.Large, ok = p.spool.next(most); !ok {
			return replica.ProtocolErrorf("a chunked value without its chunks")
		}
	default:
		if v.Value = d.Bytes(len(d.B)); len(v.Value) > most {
			v.Value, v.Large = nil, uint64(len(v.Value))
		}
	}
	return nil
}

// checkKeys refuses what no honest peer would send, before any of it is stored.
func checkKeys(h Host, keys []replica.RemoteKey) (err error) {
	h.With(func(r *replica.Replica) {
		latest := causal.StampOf(r.Now().Add(r.MaxSkew))
		for _, k := range keys {
			if err = checkKey(r, k.Key, k.Versions, latest); err != nil {
				return
			}
		}
	})
	return err
}

// checkKey refuses versions of a key that no honest peer would send.
func checkKey(r *replica.Replica, key []byte, versions []store.Version, latest causal.Stamp) error {
	switch {
	case store.Reserved(key):
		return replica.ProtocolErrorf("an entry for the reserved key %.40q", key)
	case r.Local != nil && r.Local(key):
		return replica.ProtocolErrorf("an entry for a key that is in a local range here; all replicas of a cluster need the same Options.LocalRanges")
	}
	for i := range versions {
		v := &versions[i]
		if v.Origin == r.Self && v.Seq > r.Seq {
			return replica.ProtocolErrorf("a write %d of this replica, which has made only %d", v.Seq, r.Seq)
		}
		if v.NameOnly {
			continue
		}
		if v.Stamp > latest {
			return fmt.Errorf("%w: a write by %s is %v ahead", replica.ErrClockSkew, v.Origin.Short(), v.Stamp.Time().Sub(r.Now()))
		}
		if n := v.Context.Seq(r.Self); n > r.Seq {
			return replica.ProtocolErrorf("a write that has seen write %d of this replica, which has made only %d", n, r.Seq)
		}
	}
	return nil
}
