package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// commands returns what the parent may request of a replica. Each may fill in the last
// reply, and send others before it.
func (n *replica) commands() map[string]func(request, *reply) error {
	return map[string]func(request, *reply) error{
		"peers":     n.addPeers,
		"import":    n.importFiles,
		"hold":      func(request, *reply) error { n.gate.hold(); return nil },
		"release":   func(request, *reply) error { n.gate.release(); return nil },
		"edit":      n.edit,
		"resolve":   n.resolve,
		"delete":    n.deletePrefix,
		"series":    n.series,
		"status":    n.status,
		"conflicts": n.conflicts,
		"dump":      n.dump,
		"page":      n.servePage,
	}
}

func (n *replica) addPeers(r request, _ *reply) error {
	for _, addr := range r.Peers {
		if err := n.db.AddPeer(addr); err != nil {
			return err
		}
	}
	return nil
}

var errOver = errors.New("the input has ended")

func (n *replica) put(key string, value []byte) error {
	if n.over.Load() {
		return errOver
	}
	if err := n.db.Put([]byte(key), value, nil); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	n.written.Add(1)
	n.writtenBytes.Add(int64(len(value)))
	return nil
}

// importFiles puts files, the key being the path below the source directory.
func (n *replica) importFiles(r request, _ *reply) error {
	for _, key := range r.Keys {
		value, err := os.ReadFile(filepath.Join(r.Source, filepath.FromSlash(key)))
		if err != nil {
			return err
		}
		if err := n.put(key, value); err != nil {
			return err
		}
	}
	return nil
}

// edit appends the signature r.Prefix to each value.
func (n *replica) edit(r request, _ *reply) error {
	return n.rewrite(r.Keys, func(value []byte) []byte { return sign(value, r.Prefix) })
}

// resolve writes the resolved values, which ends the conflicts: the new versions have seen
// all others.
func (n *replica) resolve(r request, _ *reply) error {
	return n.rewrite(r.Keys, func(value []byte) []byte { return value })
}

func (n *replica) rewrite(keys []string, change func([]byte) []byte) error {
	for _, key := range keys {
		value, err := n.db.Get([]byte(key), nil)
		if err != nil {
			return fmt.Errorf("get %s: %w", key, err)
		}
		if err := n.put(key, change(value)); err != nil {
			return err
		}
	}
	return nil
}

// deletePrefix deletes all keys with the prefix in one batch.
func (n *replica) deletePrefix(r request, last *reply) error {
	it := n.db.NewIterator(util.BytesPrefix([]byte(r.Prefix)), nil)
	batch := new(leveldb.Batch)
	for it.Next() {
		batch.Delete(it.Key())
	}
	it.Release()
	if err := it.Error(); err != nil {
		return fmt.Errorf("list %s: %w", r.Prefix, err)
	}
	last.N = batch.Len()
	return n.db.Write(batch, nil)
}

// series puts entries 1, 2, 3 … below a prefix, r.Count of them, and acknowledges each
// once Put has returned.
func (n *replica) series(r request, _ *reply) error {
	for i := 1; i <= r.Count; i++ {
		key := seriesKey(r.Prefix, i)
		if err := n.put(key, seriesValue(key)); err != nil {
			return err
		}
		if err := n.send(reply{ID: r.ID, N: i}); err != nil {
			return err
		}
	}
	return nil
}

func (n *replica) status(_ request, last *reply) error {
	s := n.db.Status()
	n.mu.Lock()
	arisen := len(n.arisen)
	n.mu.Unlock()
	last.State = &report{
		Name:         s.Name,
		Keys:         s.Keys,
		Conflicts:    s.Conflicts,
		Pulled:       s.Pulled,
		Served:       s.Served,
		Digest:       n.db.Digest().String(),
		Written:      n.written.Load(),
		WrittenBytes: n.writtenBytes.Load(),
		Arisen:       int64(arisen),
		Ended:        n.ended.Load(),
		Merged:       n.merged.Load(),
	}
	for _, p := range s.Peers {
		met := p.State == replicator.PeerOK && p.Name != "" && p.Name != s.Name
		if met && !slices.Contains(last.State.Met, p.Name) {
			last.State.Met = append(last.State.Met, p.Name)
		}
	}
	return nil
}

// conflicts sends each key that Conflicts lists, with its number of versions.
func (n *replica) conflicts(r request, _ *reply) error {
	var errs []error
	for c, err := range n.db.Conflicts(context.Background()) {
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, n.send(reply{ID: r.ID, Key: string(c.Key), N: len(c.Versions)}))
	}
	return errors.Join(errs...)
}

// dump sends every key and value.
func (n *replica) dump(r request, _ *reply) error {
	it := n.db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		if err := n.send(reply{ID: r.ID, Key: string(it.Key()), value: it.Value()}); err != nil {
			return err
		}
	}
	return it.Error()
}

// servePage serves the status page on loopback and replies with its address.
func (n *replica) servePage(_ request, last *reply) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	n.page.Handler = statuspage.Handler(n.db)
	last.Addr = l.Addr().String()
	go n.page.Serve(l) // until the page is closed
	return nil
}
