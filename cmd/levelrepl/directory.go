package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/syndtr/goleveldb/leveldb"
	lverrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/store"
)

// directory is how to open the directory of a stopped replica.
type directory struct {
	local    []string // prefixes
	resolver string
}

func (d *directory) flags(c *cobra.Command) {
	c.Flags().StringArrayVar(&d.local, "local", nil, "key `prefix` that is neither logged nor sent, as the directory was served with; repeatable (default: as stored in it)")
	c.Flags().StringVar(&d.resolver, "resolver", "highest-clock", "what reads of keys in conflict return: highest-clock or last-write-wins, as the directory was served with")
	_ = c.RegisterFlagCompletionFunc("resolver", completeResolver)
}

// openPlain opens a directory, replicated or not, to read the values of keys.
func openPlain(dir string) (*local, error) {
	s, raw, err := openRaw(dir)
	if err != nil {
		return nil, err
	}
	return &local{reader: raw, close: func() error { return errors.Join(raw.Close(), s.Close()) }}, nil
}

// openRaw opens a database that leaves its directory as it is. goleveldb's own
// read-only mode would do for reading, but fails (with "EOF") where there are two
// journals, and every clean close of a replica leaves two.
func openRaw(dir string) (*shadow, *leveldb.DB, error) {
	if err := checkDirectory(dir); err != nil {
		return nil, nil, err
	}
	s, err := openShadow(dir)
	if err != nil {
		return nil, nil, explainOpen(dir, err)
	}
	raw, err := opened(func() (*leveldb.DB, error) { return leveldb.Open(s, shadowOptions()) })
	if err != nil {
		return nil, nil, errors.Join(explainOpen(dir, err), s.Close())
	}
	return s, raw, nil
}

// clusterOf returns the cluster that a directory belongs to, and whether it was ever
// replicated.
func clusterOf(dir string) (cluster string, replicated bool, err error) {
	l, err := openPlain(dir)
	if err != nil {
		return "", false, err
	}
	defer l.Close()
	format, err := l.reader.Get(store.MetaFormat, nil)
	switch {
	case errors.Is(err, leveldb.ErrNotFound):
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("read %s: %w", dir, err)
	case len(format) == 0:
		return "", false, fmt.Errorf("%s: its format record is corrupted", dir)
	}
	return string(format[1:]), true, nil
}

// openShadow opens a directory to read all of it, log included, and leaves it as it is.
func (a *app) openShadow(dir string, d *directory) (*local, error) {
	cluster, err := needReplicated(dir)
	if err != nil {
		return nil, err
	}
	s, raw, err := openRaw(dir)
	if err != nil {
		return nil, err
	}
	// Opening a replica resolves its conflicts again, perhaps with another resolver than
	// that of the program that served it. Reads return what is stored.
	stored, err := raw.GetSnapshot()
	if err != nil {
		return nil, errors.Join(err, raw.Close(), s.Close())
	}
	l, err := a.replicate(dir, raw, s, cluster, d)
	if err != nil {
		return nil, err
	}
	l.reader, l.stored = stored, true
	end := l.close
	l.close = func() error {
		stored.Release()
		return end()
	}
	return l, nil
}

// openToWrite opens a directory so that what is written is logged.
func (a *app) openToWrite(dir string, d *directory) (*local, error) {
	cluster, err := needReplicated(dir)
	if err != nil {
		return nil, err
	}
	return a.openCluster(dir, cluster, d)
}

// openCluster is openToWrite for a directory that may not be replicated yet.
func (a *app) openCluster(dir, cluster string, d *directory) (*local, error) {
	o := replicator.StoreOptions()
	o.ErrorIfMissing = true
	raw, err := opened(func() (*leveldb.DB, error) { return leveldb.OpenFile(dir, o) })
	if err != nil {
		return nil, explainOpen(dir, err)
	}
	return a.replicate(dir, raw, nil, cluster, d)
}

// replicate opens a replica that no peer can reach and that reaches none.
func (a *app) replicate(dir string, raw *leveldb.DB, s storage.Storage, cluster string, d *directory) (*local, error) {
	free := func() error {
		if s != nil {
			return s.Close()
		}
		return nil
	}
	bar := a.newBar()
	o := &replicator.Options{
		Name: filepath.Base(dir), Cluster: cluster, Listener: newDeaf(), Limits: replicator.Limits{MaxKey: 1 << 20, MaxValue: 1 << 30},
		Logger: slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Events: &replicator.Events{Progress: bar.tell},
	}
	err := errors.Join(a.setLocal(o, d.local), setResolver(o, d.resolver))
	if err == nil && len(d.local) == 0 {
		o.LocalRanges, err = localOf(raw)
	}
	var db *replicator.DB
	if err == nil {
		db, err = replicator.Replicate(raw, o)
	}
	if err != nil {
		return nil, errors.Join(err, raw.Close(), free())
	}
	return &local{reader: db, db: db, sync: true, close: func() error {
		bar.end()
		return errors.Join(db.Close(), free())
	}}, nil
}

// localOf returns the local ranges that a directory records. One that was never replicated,
// or only by a release that did not record them, has none.
func localOf(raw *leveldb.DB) ([]*util.Range, error) {
	rec, err := raw.Get(store.MetaLocal, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ranges, err := store.DecodeRanges(rec)
	if err != nil {
		return nil, fmt.Errorf("record of the local ranges: %w", err)
	}
	return ranges, nil
}

func needReplicated(dir string) (cluster string, err error) {
	cluster, replicated, err := clusterOf(dir)
	if err == nil && !replicated {
		err = &hintedError{fmt.Errorf("%s was never replicated: it has no log", dir), "levelrepl adopt " + dir + " makes it a member that others can pull from"}
	}
	return cluster, err
}

func (a *app) setLocal(o *replicator.Options, prefixes []string) error {
	for _, p := range prefixes {
		b, err := a.encoding.parse(p)
		if err != nil {
			return err
		}
		if len(b) == 0 {
			return &usageError{errors.New("--local: an empty prefix would be every key"), "give the prefix that the keys to keep here begin with"}
		}
		o.LocalRanges = append(o.LocalRanges, util.BytesPrefix(b))
	}
	return nil
}

// openEither opens a directory, by the given function, or an address.
func (a *app) openEither(arg string, d *directory, open func(dir string, d *directory) (*local, error)) (replica, error) {
	if !isDirectory(arg) {
		return newRemote(arg)
	}
	return open(arg, d)
}

// openAny opens a directory whether it is replicated or not.
func (a *app) openAny(dir string, d *directory) (*local, error) {
	_, replicated, err := clusterOf(dir)
	switch {
	case err != nil:
		return nil, err
	case replicated:
		return a.openShadow(dir, d)
	}
	return openPlain(dir)
}

// isDirectory reports whether an argument names a directory rather than an address.
func isDirectory(arg string) bool {
	info, err := os.Stat(arg)
	return err == nil && info.IsDir() || !strings.Contains(arg, ":")
}

// checkDirectory returns what is wrong with a path, before goleveldb puts a lock file there.
func checkDirectory(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return &hintedError{err, "give the directory of a goleveldb database"}
	}
	if !info.IsDir() {
		return &hintedError{fmt.Errorf("%s is a file", dir), "give the directory of a goleveldb database"}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return explainOpen(dir, err)
	}
	if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return strings.HasPrefix(f.Name(), "CURRENT") }) {
		return &hintedError{fmt.Errorf("%s is not a goleveldb directory: it has no CURRENT file", dir), "levelrepl serve " + dir + " would make a new database there"}
	}
	return nil
}

// makeDirectory makes a directory if there is none, for its owner only: one that goleveldb
// makes is readable by everybody. It leaves the mode of an existing one alone.
func makeDirectory(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return explainOpen(dir, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return explainOpen(dir, err)
	}
	return nil
}

// opened calls open and returns goleveldb's panics as errors: it panics over some
// corruption.
func opened(open func() (*leveldb.DB, error)) (db *leveldb.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = lverrors.NewErrCorrupted(storage.FileDesc{}, fmt.Errorf("%v", p))
		}
	}()
	return open()
}

// explainOpen adds what to do about a directory that cannot be opened.
func explainOpen(dir string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, storage.ErrLocked):
		hint = "another process has it open: stop that, or talk to it with --addr if it is levelrepl serve"
	case errors.Is(err, os.ErrPermission):
		hint = "run this as the user that owns the directory"
	case lverrors.IsCorrupted(err):
		hint = "copy the directory, then move it away, serve an empty one and let it fill from its peers"
	}
	return &hintedError{fmt.Errorf("open %s: %w", dir, err), hint}
}

// deaf is a listener that nobody can reach.
type deaf struct {
	closed chan struct{}
	once   sync.Once
}

func newDeaf() *deaf { return &deaf{closed: make(chan struct{})} }

// Accept waits for Close.
func (d *deaf) Accept() (net.Conn, error) {
	<-d.closed
	return nil, net.ErrClosed
}

// Close ends Accept.
func (d *deaf) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Addr returns an address that nobody can dial.
func (d *deaf) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
