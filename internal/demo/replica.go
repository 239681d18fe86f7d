package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
)

// replica is a replicated database that obeys the requests on its standard input.
type replica struct {
	db   *replicator.DB
	gate gate
	page http.Server // of the status page; serves once it is asked to
	over atomic.Bool // the input has ended: give up what is under way

	written, writtenBytes atomic.Int64
	ended, merged         atomic.Int64

	mu     sync.Mutex
	arisen map[string]bool // keys that came into conflict
	out    *bufio.Writer   // Invariant: written with mu held, a reply and its bytes together
}

// Replica is the main function of a replica; it returns the exit status.
func Replica(in io.Reader, out io.Writer) int {
	// Ctrl-C goes to the whole process group. Only the parent acts on it and
	// then ends our input.
	signal.Ignore(os.Interrupt)
	n := &replica{out: bufio.NewWriterSize(out, 1<<16), arisen: map[string]bool{}}
	if err := n.run(in); err != nil {
		n.send(reply{Error: err.Error()})
		return 1
	}
	return 0
}

func (n *replica) run(in io.Reader) error {
	var c config
	if err := json.Unmarshal([]byte(os.Getenv(roleEnv)), &c); err != nil {
		return fmt.Errorf("read %s: %w", roleEnv, err)
	}
	raw, err := leveldb.OpenFile(filepath.Join(c.Dir, "db"), replicator.StoreOptions())
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	// Standard error is a file in the replica's directory.
	if n.db, err = replicator.Replicate(raw, n.options(c)); err != nil {
		return errors.Join(err, raw.Close())
	}
	n.send(reply{Event: "open", Addr: n.db.Addr().String()})
	err = n.obey(in)
	n.gate.release()
	return errors.Join(err, n.page.Close(), n.db.Close())
}

func (n *replica) options(c config) *replicator.Options {
	o := &replicator.Options{
		Name:     c.Name,
		Cluster:  c.Cluster,
		Listen:   "127.0.0.1:0",
		Resolver: n.merge,
		Dial:     n.gate.dial,
		Logger:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Events: &replicator.Events{
			Conflict: n.conflict,
			Resolved: func([]byte) { n.ended.Add(1) },
		},
	}
	if c.Multicast {
		o.Discover = []replicator.Discoverer{n.multicast()}
	}
	return o
}

// conflict counts keys in conflict: a third version of a key is no second conflict.
func (n *replica) conflict(key []byte, _ []replicator.Version) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.arisen[string(key)] = true
}

func (n *replica) merge(key []byte, a, b replicator.Version) replicator.Version {
	n.merged.Add(1)
	return mergeEdits(key, a, b)
}

// multicast returns replicator.Multicast, which also reports to the parent if there is
// none.
func (n *replica) multicast() replicator.Discoverer {
	m := replicator.Multicast(nil)
	return replicator.DiscovererFunc(func(ctx context.Context, self replicator.Self, found func(string)) error {
		err := m.Discover(ctx, self, found)
		if err != nil && ctx.Err() == nil {
			n.send(reply{Event: "no multicast", Key: err.Error()})
		}
		return err
	})
}

// obey runs each request in a goroutine of its own until the input ends.
func (n *replica) obey(in io.Reader) error {
	commands := n.commands()
	requests := json.NewDecoder(in)
	var running sync.WaitGroup
	defer func() {
		n.over.Store(true)
		running.Wait()
	}()
	for {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		do := commands[r.Do]
		if do == nil {
			return fmt.Errorf("unknown request %q", r.Do)
		}
		running.Go(func() {
			last := reply{ID: r.ID, Last: true}
			if err := do(r, &last); err != nil {
				last.Error = err.Error()
			}
			n.send(last)
		})
	}
}

// send writes a reply. The values of a dump may stay in the buffer until the next reply;
// anything else goes out at once. If it fails, the parent is gone: the input ends, and with
// it this process.
func (n *replica) send(r reply) error {
	r.Size = len(r.value)
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.Write(line)
	n.out.WriteByte('\n')
	if _, err := n.out.Write(r.value); err != nil || r.value != nil {
		return err
	}
	return n.out.Flush()
}
