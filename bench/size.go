package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/level-replicator/replicator"
)

// sizes are the scenarios of databases of so many keys and such values, opened with StoreOptions.
func sizes() (list []scenario) {
	for _, c := range []struct{ value, keys int }{
		{100, 200_000}, {100, 1_000_000}, {100, 2_000_000}, {100, 5_000_000},
		{1 << 10, 200_000}, {1 << 10, 5_000_000},
		{16 << 10, 20_000}, {16 << 10, 200_000},
	} {
		s := size(c.value, c.keys)
		s.large = c.keys > 1_000_000 || c.keys*c.value > 1<<30
		list = append(list, s)
	}
	return suited.with(list...)
}

func size(value, keys int) scenario {
	where := fmt.Sprintf("/value=%d/keys=%d", value, keys)
	s := scenario{name: "Size" + where, systems: []string{raw, blind, replicated}, title: fmt.Sprintf("Among %d keys, values of %d bytes (%s: writes the same records and looks nothing up)", keys, value, blind)}
	batches := aim{}
	if keys == 2_000_000 {
		batches = atLeast(0.4)
	}
	names := []string{"Size/do=batch" + where, "Size/do=put" + where, "Size/do=overwrite" + where, "Size/do=get" + where}
	s.rows = []row{
		{names[0], "op/s", "batches of 1,000 new keys, up to so many", batches},
		{names[1], "op/s", "Put of new keys", aim{}},
		{names[2], "op/s", "overwrites, uniform", aim{}},
		{names[3], "op/s", "Get, uniform", aim{}},
	}
	s.run = func(e *env) error {
		db, err := e.open(replicator.Options{})
		if err != nil {
			return err
		}
		return errors.Join(e.size(db, names, min(keys, e.most), value), db.Close())
	}
	return s
}

func (e *env) size(db handle, names []string, n, value int) error {
	ks, v := newKeys(n, uint64(e.round)), newValues(value, uint64(e.round))
	all, half := inOrder(n), n/2
	if err := writeBatches(db, ks, all[:half], v, 1000); err != nil {
		return err
	}
	err := e.timed(names[0], n-half, func() error { return writeBatches(db, ks, all[half:], v, 1000) })
	if err != nil {
		return err
	}
	ops := max(n/50, min(n, e.keys/5))
	more, some := newKeys(ops, uint64(e.round)+1<<32), uniform(n, ops, uint64(e.round))
	others := uniform(n, ops, uint64(e.round)+1) // not those that are still in the memtable
	for i, work := range []func() error{
		func() error { return putAll(db, more, inOrder(ops), value, 1, 1) },
		func() error { return putAll(db, ks, some, value, 1, 2) },
		func() error { return getAll(db, ks, others) },
	} {
		if _, err := e.compacted(e.dir); err != nil {
			return err
		}
		if err := e.timed(names[i+1], ops, work); err != nil {
			return err
		}
	}
	return nil
}

// recorder is a bare handle that is written the three records that a replica writes for a key, and
// looks nothing up.
type recorder struct {
	*leveldb.DB
	seq   uint64
	batch *leveldb.Batch
}

func newRecorder(db *leveldb.DB) *recorder {
	return &recorder{DB: db, batch: leveldb.MakeBatchWithConfig(&leveldb.BatchConfig{GrowLimit: 1 << 30})}
}

// Put is for one writer, as is Write.
func (r *recorder) Put(key, value []byte, wo *opt.WriteOptions) error {
	r.batch.Reset()
	(*recording)(r).Put(key, value)
	return r.DB.Write(r.batch, wo)
}

func (r *recorder) Write(b *leveldb.Batch, wo *opt.WriteOptions) error {
	r.batch.Reset()
	if err := b.Replay((*recording)(r)); err != nil {
		return err
	}
	return r.DB.Write(r.batch, wo)
}

// recording stages the records of a key: as long as those of docs/format.md, and what matters to a store
// of the same content.
type recording recorder

func (r *recording) Put(key, value []byte) {
	r.seq++
	r.batch.Put(key, value)
	var buf [128]byte
	log := binary.BigEndian.AppendUint64(append(buf[:0], "\xff\xffl\x00\x00\x00\x00"...), r.seq)
	entry := append(buf[32:32], make([]byte, 2+1+8+1+2+1+1)...) // version, flags, clock, stamp, offset, count, context, length
	binary.BigEndian.PutUint64(entry[3:], r.seq)
	entry = append(append(entry, key...), make([]byte, 4)...) // checksum
	r.batch.Put(log, entry)
	index := append(append(buf[:0], "\xff\xffi"...), key...)
	state := binary.AppendUvarint(append(buf[64:64], 1, 1, 0, 0), r.seq)
	r.batch.Put(index, append(state, 0, 0))
}

func (r *recording) Delete([]byte) {}
