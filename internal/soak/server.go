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

// serverConfig is what a server process is told at its start, as JSON.
type serverConfig struct {
	Number   int
	Dir      string
	Listen   string
	Proxies  []string // where the servers are dialed, by number
	Secret   []byte
	Skew     time.Duration
	Rate     int // writes per second
	OwnKeys  int // keys that only this server writes
	AllKeys  int // keys that all servers write
	FirstOwn int64
}

// serverReport is what a server process says, one line of JSON each.
type serverReport struct {
	Opened     time.Duration // once, after the start
	Acked      int64         // of the writes to own keys, the number of the last acknowledged
	Writes     int64         // acknowledged since the start
	Digest     replicator.Digest
	Keys       int64
	Tombstones int64
	Failed     string
	Mismatches int64
	RSS        int64 // bytes
	Goroutines int
	Files      int   // open file handles
	Disk       int64 // bytes
	Dumped     bool  // the answer to "dump"
	Paused     bool
	Pulled     int64
	Error      string
}

// server is one process of the cluster under test.
type server struct {
	conf   serverConfig
	db     *replicator.DB
	acked  atomic.Int64
	writes atomic.Int64
	paused atomic.Bool

	mu  sync.Mutex // guards out
	out *json.Encoder
}

// runServer is the whole life of a server process, unless it is killed. It is
// told what to do on stdin, a word a line: pause, resume, report, dump, stop.
func runServer(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	s := &server{out: json.NewEncoder(out)}
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

func (s *server) open() error {
	started := time.Now()
	raw, err := leveldb.OpenFile(s.conf.Dir, nil)
	if err != nil {
		return err
	}
	d := net.Dialer{}
	s.db, err = replicator.Replicate(raw, &replicator.Options{
		Name: fmt.Sprintf("server %d", s.conf.Number), Listen: s.conf.Listen, Advertise: s.conf.Proxies[s.conf.Number],
		Peers: s.conf.Proxies, Secret: s.conf.Secret, MaxInterval: 2 * time.Second,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Now:    func() time.Time { return time.Now().Add(s.conf.Skew) },
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err == nil { // tells the proxy who calls
				_, err = c.Write([]byte{byte(s.conf.Number)})
			}
			return c, err
		},
	})
	if err != nil {
		return err
	}
	s.acked.Store(s.conf.FirstOwn)
	s.say(&serverReport{Opened: time.Since(started)})
	return nil
}

// load writes at an even rate: own keys with rising numbers, and keys that others
// write and delete as well.
func (s *server) load(ctx context.Context) {
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
			err = s.db.Put(k, bytes.Repeat([]byte{byte('a' + s.conf.Number)}, rand.IntN(2000)), nil)
		}
		if err != nil {
			s.say(&serverReport{Error: "write: " + err.Error()})
			return
		}
		s.writes.Add(1)
	}
}

func ownKey(server int, n int64, keys int) []byte {
	return fmt.Appendf(nil, "own/%d/%05d", server, n%int64(keys))
}

func ownValue(n int64) []byte { return fmt.Appendf(nil, "%d-%0*d", n, n%200, 0) }

func (s *server) obey(lines *bufio.Scanner) error {
	go func() { // so that acknowledgements are known when the process is killed
		for range time.Tick(20 * time.Millisecond) {
			s.say(&serverReport{Acked: s.acked.Load(), Writes: s.writes.Load()})
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
			s.say(&serverReport{Dumped: true})
		case "stop":
			return nil
		}
	}
	return lines.Err() // the parent is gone
}

func (s *server) say(r *serverReport) {
	if r.Acked == 0 {
		r.Acked = s.acked.Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Encode(r)
}

func (s *server) report() *serverReport {
	st := s.db.Status()
	r := &serverReport{
		Digest: st.Digest, Keys: st.Keys, Tombstones: st.Tombstones, Failed: st.Failed, Mismatches: st.Mismatches, Pulled: st.Pulled,
		Writes: s.writes.Load(), Goroutines: runtime.NumGoroutine(), Paused: s.paused.Load(),
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
func (s *server) dump() error {
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
