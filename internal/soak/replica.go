package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
)

// config is what a replica process reads at its start, as JSON.
type config struct {
	Number   int
	Dir      string
	Listen   string
	Proxy    string   // where this replica is dialed, if that is not where it listens
	Peers    []string // if there are proxies, theirs
	Secret   []byte
	Skew     time.Duration
	Rate     int // writes per second
	OwnKeys  int // keys that only this replica writes
	AllKeys  int // keys that all replicas write
	FirstOwn int64
}

// report is what a replica process prints, one line of JSON each.
type report struct {
	Opened     time.Duration // once, after the start
	Acked      int64         // of the writes to own keys, the number of the last acknowledged
	Writes     int64         // acknowledged since the start
	Digest     replicator.Digest
	Counting   bool
	Keys       int64
	Tombstones int64
	Failed     string
	Mismatches int64
	RSS        int64 // bytes
	Sessions   int64 // since the start
	Peers      int   // that are known
	Goroutines int
	Files      int   // open file handles
	Disk       int64 // bytes
	Dumped     bool  // the answer to "dump"
	Paused     bool
	Pulled     int64
	Error      string
}

// replica is one process of the cluster under test.
type replica struct {
	conf   config
	db     *replicator.DB
	acked  atomic.Int64
	writes atomic.Int64
	paused atomic.Bool

	mu  sync.Mutex // guards out
	out *json.Encoder
}

// runReplica is the main function of a replica process. It reads a command from each line
// of stdin: pause, resume, report, dump, stop.
func runReplica(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	s := &replica{out: json.NewEncoder(out)}
	if !lines.Scan() {
		return errors.New("no configuration on stdin")
	}
	if err := json.Unmarshal(lines.Bytes(), &s.conf); err != nil {
		return err
	}
	if err := s.open(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	load.Go(func() { s.load(ctx) })
	err := s.obey(lines)
	cancel()
	load.Wait()
	return errors.Join(err, s.db.Close())
}

func (s *replica) open() error {
	started := time.Now()
	raw, err := leveldb.OpenFile(s.conf.Dir, nil)
	if err != nil {
		return err
	}
	o := &replicator.Options{
		Name: fmt.Sprintf("replica %d", s.conf.Number), Listen: s.conf.Listen, Advertise: s.conf.Proxy,
		Peers: s.conf.Peers, Secret: s.conf.Secret,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Now:    func() time.Time { return time.Now().Add(s.conf.Skew) },
	}
	if s.conf.Proxy != "" {
		o.MaxInterval, o.Dial = 2*time.Second, s.dialProxy
	}
	if s.db, err = replicator.Replicate(raw, o); err != nil {
		return err
	}
	s.acked.Store(s.conf.FirstOwn)
	s.say(&report{Opened: time.Since(started)})
	return nil
}

// dialProxy tells the proxy, which needs to know, who dials.
func (s *replica) dialProxy(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err == nil {
		_, err = c.Write([]byte{byte(s.conf.Number)})
	}
	return c, err
}

// load writes at an even rate: own keys with rising numbers, and keys that others write
// and delete, too.
func (s *replica) load(ctx context.Context) {
	tick := time.NewTicker(time.Second / time.Duration(s.conf.Rate))
	defer tick.Stop()
	for n := s.conf.FirstOwn; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.paused.Load() {
			continue
		}
		var err error
		if k := fmt.Appendf(nil, "all/%05d", rand.IntN(s.conf.AllKeys)); rand.IntN(3) > 0 {
			n++
			if err = s.db.Put(ownKey(s.conf.Number, n, s.conf.OwnKeys), ownValue(n), nil); err == nil {
				s.acked.Store(n)
			}
		} else if rand.IntN(3) == 0 {
			err = s.db.Delete(k, nil)
		} else {
			err = s.db.Put(k, bytes.Repeat([]byte{byte('a' + s.conf.Number%26)}, rand.IntN(2000)), nil)
		}
		if err != nil {
			s.say(&report{Error: "write: " + err.Error()})
			return
		}
		s.writes.Add(1)
	}
}

func ownKey(replica int, n int64, keys int) []byte {
	return fmt.Appendf(nil, "own/%d/%05d", replica, n%int64(keys))
}

func ownValue(n int64) []byte { return fmt.Appendf(nil, "%d-%0*d", n, n%200, 0) }

func (s *replica) obey(lines *bufio.Scanner) error {
	go func() { // so that acknowledgements are known when the process is killed
		told := int64(-1)
		for range time.Tick(20 * time.Millisecond) {
			if n := s.writes.Load(); n != told {
				told = n
				s.say(&report{Acked: s.acked.Load(), Writes: n})
			}
		}
	}()
	for lines.Scan() {
		switch lines.Text() {
		case "pause":
			s.paused.Store(true)
		case "resume":
			s.paused.Store(false)
		case "report":
			s.say(s.report())
		case "dump":
			if err := s.dump(); err != nil {
				return err
			}
			s.say(&report{Dumped: true})
		case "stop":
			return nil
		}
	}
	return lines.Err() // the parent is gone
}

func (s *replica) say(r *report) {
	if r.Acked == 0 {
		r.Acked = s.acked.Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Encode(r)
}

func (s *replica) report() *report {
	st := s.db.Status()
	r := &report{
		Digest: st.Digest, Counting: st.Counting, Keys: st.Keys, Tombstones: st.Tombstones, Failed: st.Failed, Mismatches: st.Mismatches, Pulled: st.Pulled,
		Writes: s.writes.Load(), Sessions: st.Sessions, Goroutines: runtime.NumGoroutine(), Paused: s.paused.Load(),
	}
	for _, p := range st.Peers {
		if p.State != replicator.PeerSelf {
			r.Peers++
		}
	}
	runtime.GC()
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident int64
		fmt.Sscan(string(b), &size, &resident)
		r.RSS = resident * int64(os.Getpagesize())
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		r.Files = len(fds)
	}
	filepath.WalkDir(s.conf.Dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // compaction removed it meanwhile
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			r.Disk += info.Size()
		}
		return nil
	})
	return r
}

// dump writes all keys and values to a file beside the database.
func (s *replica) dump() error {
	f, err := os.Create(dumpPath(s.conf.Dir))
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	it := s.db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		fmt.Fprintf(w, "%q %q\n", it.Key(), it.Value())
	}
	return errors.Join(it.Error(), w.Flush(), f.Close())
}

func dumpPath(dir string) string { return dir + ".dump" }
