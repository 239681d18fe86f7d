package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/syndtr/goleveldb/leveldb"
)

// raftCluster is hashicorp/raft with a goleveldb handle as state machine on each
// node. Its log is in memory, in its favour: raft-boltdb does not build with the
// current go-metrics, and would be slower.
type raftCluster struct {
	e     *env
	nodes []*raftNode
	seen  func(node int, key []byte)
}

// raftNode is one node, and its state machine.
type raftNode struct {
	id      int
	raft    *raft.Raft
	addr    raft.ServerAddress
	net     *raft.NetworkTransport
	db      *leveldb.DB
	seen    func(node int, key []byte)
	applied atomic.Int64
}

func startRaft(e *env, nodes int, seen func(node int, key []byte)) (_ cluster, err error) {
	c := &raftCluster{e: e, seen: seen}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	for range nodes {
		if _, err := c.add(); err != nil {
			return nil, err
		}
	}
	var members []raft.Server
	for _, n := range c.nodes {
		members = append(members, raft.Server{ID: raft.ServerID(fmt.Sprint(n.id)), Address: n.addr})
	}
	if err := c.nodes[0].raft.BootstrapCluster(raft.Configuration{Servers: members[:1]}).Error(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); c.nodes[0].raft.State() != raft.Leader; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return nil, errors.New("raft has no leader after 20 s")
		}
	}
	for _, m := range members[1:] {
		if err := c.nodes[0].raft.AddVoter(m.ID, m.Address, 0, 20*time.Second).Error(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *raftCluster) add() (_ *raftNode, err error) {
	n := &raftNode{id: len(c.nodes), seen: c.seen}
	dir := filepath.Join(c.e.dir, fmt.Sprint("raft", n.id))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	c.nodes = append(c.nodes, n)
	if n.db, err = leveldb.OpenFile(filepath.Join(dir, "db"), nil); err != nil {
		return nil, err
	}
	if n.net, err = raft.NewTCPTransport("127.0.0.1:0", nil, 3, 10*time.Second, io.Discard); err != nil {
		return nil, err
	}
	n.addr = n.net.LocalAddr()
	snapshots, err := raft.NewFileSnapshotStore(dir, 1, io.Discard)
	if err != nil {
		return nil, err
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = raft.ServerID(fmt.Sprint(n.id)), hclog.NewNullLogger()
	log := raft.NewInmemStore()
	n.raft, err = raft.NewRaft(conf, n, log, log, snapshots, n.net)
	return n, err
}

// entryOf returns a put as a log entry.
func entryOf(key, value []byte) []byte {
	return append(append(binary.AppendUvarint(nil, uint64(len(key))), key...), value...)
}

func (c *raftCluster) put(key, value []byte) error {
	return c.nodes[0].raft.Apply(entryOf(key, value), 10*time.Second).Error()
}

func (c *raftCluster) load(ks keys) error {
	v := newValues(100, 7)
	var waiting []raft.ApplyFuture
	for i := range uint32(ks.len()) {
		waiting = append(waiting, c.nodes[0].raft.Apply(entryOf(ks.at(i), v.next()), time.Minute))
		if len(waiting) == 1000 || int(i) == ks.len()-1 {
			for _, f := range waiting {
				if err := f.Error(); err != nil {
					return err
				}
			}
			waiting = waiting[:0]
		}
	}
	return nil
}

func (c *raftCluster) join() error {
	want := c.nodes[0].applied.Load()
	n, err := c.add()
	if err != nil {
		return err
	}
	if err := c.nodes[0].raft.AddVoter(raft.ServerID(fmt.Sprint(n.id)), n.addr, 0, time.Minute).Error(); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); n.applied.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("raft: the new node has %d of %d after 2 min", n.applied.Load(), want)
		}
	}
	return nil
}

func (c *raftCluster) close() error {
	var errs []error
	for _, n := range c.nodes {
		if n.raft != nil {
			errs = append(errs, n.raft.Shutdown().Error())
		}
		if n.net != nil {
			errs = append(errs, n.net.Close())
		}
		if n.db != nil {
			errs = append(errs, n.db.Close())
		}
	}
	return errors.Join(errs...)
}

// Apply puts a key, as raft.FSM.
func (n *raftNode) Apply(l *raft.Log) any {
	size, skip := binary.Uvarint(l.Data)
	if skip <= 0 || uint64(len(l.Data)-skip) < size {
		return errors.New("a corrupted entry")
	}
	key, value := l.Data[skip:skip+int(size)], l.Data[skip+int(size):]
	if err := n.db.Put(key, value, nil); err != nil {
		return err
	}
	n.applied.Add(1)
	if n.seen != nil {
		n.seen(n.id, key)
	}
	return nil
}

// Snapshot returns the present state, as raft.FSM.
func (n *raftNode) Snapshot() (raft.FSMSnapshot, error) {
	s, err := n.db.GetSnapshot()
	return &raftSnapshot{s}, err
}

// Restore loads a snapshot, as raft.FSM.
func (n *raftNode) Restore(r io.ReadCloser) error {
	defer r.Close()
	b := new(leveldb.Batch)
	for head := make([]byte, 8); ; {
		if _, err := io.ReadFull(r, head); err == io.EOF {
			return n.db.Write(b, nil)
		} else if err != nil {
			return err
		}
		key, value := make([]byte, binary.BigEndian.Uint32(head)), make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(r, key); err != nil {
			return err
		}
		if _, err := io.ReadFull(r, value); err != nil {
			return err
		}
		b.Put(key, value)
		n.applied.Add(1)
		if b.Len() >= 1000 {
			if err := n.db.Write(b, nil); err != nil {
				return err
			}
			b.Reset()
		}
	}
}

type raftSnapshot struct{ state *leveldb.Snapshot }

// Persist writes all keys, as raft.FSMSnapshot.
func (s *raftSnapshot) Persist(sink raft.SnapshotSink) error {
	it := s.state.NewIterator(nil, nil)
	defer it.Release()
	var buf []byte
	for it.Next() {
		buf = binary.BigEndian.AppendUint32(buf[:0], uint32(len(it.Key())))
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(it.Value())))
		buf = append(append(buf, it.Key()...), it.Value()...)
		if _, err := sink.Write(buf); err != nil {
			return errors.Join(err, sink.Cancel())
		}
	}
	if err := it.Error(); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release ends the use of a snapshot, as raft.FSMSnapshot.
func (s *raftSnapshot) Release() { s.state.Release() }
