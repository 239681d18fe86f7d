package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
)

// openings are the scenarios of opening a database whose process was killed.
func openings() (list []scenario) {
	for _, n := range []int{200_000, 5_000_000} {
		list = append(list, openingAfterKill(n))
	}
	return list
}

func openingAfterKill(n int) scenario {
	name := fmt.Sprintf("Opening/keys=%d", n)
	s := scenario{
		name: name, systems: local, large: n > 1_000_000,
		title: fmt.Sprintf("Opening after kill -9, %s keys, values of 100 bytes", thousands(n)),
		rows: []row{
			{name, "open-sec", "goleveldb's own", aim{}},
			{name, "beyond-sec", "Replicate, beyond that", atMost(0.150)},
			{name, "put-sec", "then the first Put", atMost(0.050)},
			{name, "counted-sec", "since Replicate, until the digest is known", aim{}},
		},
	}
	s.run = func(e *env) error {
		e.sized(n)
		dir, err := e.shared.get(fmt.Sprintf("killed-%s-%d", e.system, n), func(dir string) error { return e.killed(dir, e.keys) })
		if err != nil {
			return err
		}
		if err := copyDatabase(dir, e.dir); err != nil {
			return err
		}
		return e.opened(name)
	}
	return s
}

// sized makes a small run smaller.
func (e *env) sized(n int) {
	if e.keys == full.keys {
		e.keys = n
	}
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// opened opens a database and writes to it, and times that.
func (e *env) opened(name string) error {
	began := time.Now()
	db, err := leveldb.OpenFile(e.dir, nil)
	if err != nil {
		return err
	}
	own := benchfmt.Value{Value: time.Since(began).Seconds(), Unit: "open-sec"}
	key, value := newKeys(1, 99).at(0), newValues(100, 1).next()
	if e.system == raw {
		began = time.Now()
		err := db.Put(key, value, nil)
		e.emit(name, 1, own, benchfmt.Value{Value: time.Since(began).Seconds(), Unit: "put-sec"})
		return errors.Join(err, db.Close())
	}
	began = time.Now()
	r, err := replicator.Replicate(db, &replicator.Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	opened := time.Now()
	if err = r.Put(key, value, nil); err == nil {
		put := time.Now()
		select {
		case <-r.Counted():
		case <-e.ctx.Done():
			err = e.ctx.Err()
		}
		e.emit(name, 1, own,
			benchfmt.Value{Value: opened.Sub(began).Seconds(), Unit: "beyond-sec"},
			benchfmt.Value{Value: put.Sub(opened).Seconds(), Unit: "put-sec"},
			benchfmt.Value{Value: time.Since(opened).Seconds(), Unit: "counted-sec"})
	}
	return errors.Join(err, r.Close())
}

// fillVariable holds, in the environment of a process that fills a database until it is killed, what it is to fill.
const fillVariable = "REPLICATOR_BENCH_FILL"

// killed has a process of its own fill a database, and kills it while it goes on writing.
func (e *env) killed(dir string, n int) error {
	p, err := e.startProcess(fmt.Sprintf("%s=%s %d %s", fillVariable, e.system, n, dir))
	if err != nil {
		return err
	}
	var filled bool
	return errors.Join(p.says(&filled), p.kill(e.still))
}

// fillUntilKilled is the process. It reports whether that is what this process is for.
func fillUntilKilled() bool {
	what := strings.SplitN(os.Getenv(fillVariable), " ", 3)
	if len(what) != 3 {
		return false
	}
	err := func() error {
		n, err := strconv.Atoi(what[1])
		if err != nil {
			return err
		}
		e := env{system: what[0], dir: what[2]}
		db, err := e.open(replicator.Options{})
		if err != nil {
			return err
		}
		ks := newKeys(n, 1)
		if err := load(db, ks, 100); err != nil {
			return err
		}
		fmt.Println(true)
		v := newValues(100, 8)
		for i := range cmp.Or(n, 1) * 1000 {
			if err := db.Put(ks.at(uint32(i%n)), v.next(), nil); err != nil {
				return err
			}
		}
		return nil
	}()
	fmt.Fprintln(os.Stderr, "bench: filling:", err)
	return true
}

// copyDatabase makes a copy that may be opened: tables are never changed, and so need not be copied.
func copyDatabase(from, to string) error {
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, f := range files {
		old, now := filepath.Join(from, f.Name()), filepath.Join(to, f.Name())
		if strings.HasSuffix(f.Name(), ".ldb") {
			err = os.Link(old, now)
		} else {
			err = copyFile(old, now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = io.Copy(w, r)
	return err
}
