package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
	"golang.org/x/term"
)

// target is the replica that a command works on.
type target struct {
	addr, dir string
	directory
}

func (t *target) flags(c *cobra.Command) {
	c.Flags().StringVar(&t.addr, "addr", "", "HTTP `address` of a served replica (default $"+addrEnv+", else "+defaultAddr+")")
	c.Flags().StringVar(&t.dir, "dir", "", "`directory` of a stopped replica, instead")
	t.directory.flags(c)
	c.MarkFlagsMutuallyExclusive("addr", "dir")
	_ = c.MarkFlagDirname("dir")
}

// open opens the replica, a directory by the given function.
func (t *target) open(directory func(dir string, d *directory) (*local, error)) (replica, error) {
	if t.dir == "" {
		return newRemote(t.addr)
	}
	return directory(t.dir, &t.directory)
}

func plainly(dir string, _ *directory) (*local, error) { return openPlain(dir) }

// with opens a replica, has f work on it, and closes it.
func with(n replica, err error, f func(n replica) error) error {
	if err != nil {
		return err
	}
	return errors.Join(f(n), n.Close())
}

func (a *app) jsonFlag(c *cobra.Command) {
	c.Flags().BoolVar(&a.json, "json", false, "print JSON")
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(safeJSONWriter{a.out})
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// lineJSON prints JSON on one line, for listings that may be long.
func (a *app) lineJSON(v any) error {
	e := json.NewEncoder(safeJSONWriter{a.out})
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func newGet(a *app) *cobra.Command {
	var t target
	var tagOnly bool
	c := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key",
		Long: `Print the value of a key: on a terminal as a line, escaped if it is not printable; to a
file or pipe byte for byte, unless --encoding says otherwise. The exit code is 1 if there
is no such key.

With --if it prints the key's tag instead, which --if of put, del and resolve takes, or
"none" if there is no such key. --json shows both. A tag changes with every write of the
key, and is the same at all replicas that hold the same versions.`,
		Args: args(1, 1, "one key"),
	}
	t.flags(c)
	a.jsonFlag(c)
	c.Flags().BoolVar(&tagOnly, "if", false, "print the key's tag, for --if of put, del and resolve")
	c.MarkFlagsMutuallyExclusive("json", "if")
	c.RunE = func(c *cobra.Command, args []string) error {
		key, err := a.encoding.parse(args[0])
		if err != nil {
			return err
		}
		directory := plainly
		if a.json || tagOnly {
			directory = a.openTagged
		}
		n, err := t.open(directory)
		return with(n, err, func(n replica) error {
			value, tag, err := n.get(c.Context(), key)
			switch {
			case tagOnly && (err == nil || isAbsent(err)):
				if tag == "" && err == nil {
					return errNoTag
				}
				_, err = fmt.Fprintln(a.out, cmp.Or(tag, noTag))
				return err
			case errors.Is(err, leveldb.ErrNotFound):
				return &foundError{fmt.Sprintf("there is no key %s", a.encoding.show(key))}
			case err != nil:
				return err
			case a.json:
				return a.printJSON(entry{Key: key, Value: append(octets{}, value...), ETag: tag})
			}
			return a.printValue(value, c.Flags().Changed("encoding"))
		})
	}
	return c
}

// openTagged opens a directory to read values and tags, which one that was never replicated has not.
func (a *app) openTagged(dir string, d *directory) (*local, error) {
	if _, replicated, err := clusterOf(dir); err == nil && !replicated {
		return openPlain(dir)
	}
	return a.openShadow(dir, d)
}

// printValue prints a value as it is, or as text on a line of its own.
func (a *app) printValue(value []byte, text bool) (err error) {
	if text && a.encoding != raw || a.outTerm {
		_, err = fmt.Fprintln(a.out, a.encoding.show(value))
	} else {
		_, err = a.out.Write(value)
	}
	return err
}

func newPut(a *app) *cobra.Command {
	var t target
	var file string
	var replicas int
	var on ifFlag
	c := &cobra.Command{
		Use:   "put KEY [VALUE]",
		Short: "Write a key",
		Long: `Write a key. Without VALUE, the value is read from --file or standard input, byte for
byte; empty standard input is a value only with --file -. A KEY or VALUE that begins with -
goes behind --. In a stopped directory (--dir) the write is logged, so peers get it when
the replica is back.

With --if the key is written only if nobody has written it since its tag was read; the exit
code is 1 if somebody has. Other replicas may write it at the same time all the same: that
is a conflict, and both values are kept.`,
		Example: `  levelrepl put greeting hello
  levelrepl put '"\x00\xff"' --file picture.png --replicas 1
  levelrepl put greeting hallo --if "$(levelrepl get greeting --if)"
  levelrepl put -- temperature -5`,
		Args: args(1, 2, "a key and a value"),
	}
	t.flags(c)
	c.Flags().StringVarP(&file, "file", "f", "", "`file` with the value; - is standard input")
	c.Flags().IntVar(&replicas, "replicas", 0, "wait until that many `peers` have it on disk")
	on.flag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		key, err := a.encoding.parse(args[0])
		if err != nil {
			return err
		}
		cond, err := on.condition()
		if err != nil {
			return err
		}
		value, err := a.value(c.Context(), args[1:], file)
		if err != nil {
			return err
		}
		return a.write(c.Context(), &t, replicas, func(n replica) error { return a.told(key, n.put(c.Context(), key, value, cond, replicas)) })
	}
	return c
}

// value returns a value from the command line, a file or standard input.
func (a *app) value(ctx context.Context, given []string, file string) ([]byte, error) {
	in := func() ([]byte, error) { return io.ReadAll(a.in) }
	switch {
	case len(given) > 0 && file != "":
		return nil, &usageError{errors.New("a value and --file"), "give one of the two"}
	case len(given) > 0:
		return a.encoding.parse(given[0])
	case file == "-":
		return unlessInterrupted(ctx, in)
	case file == "":
		if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			fmt.Fprintln(a.err, "the value, up to the end of the input:")
		}
		// A job whose standard input is missing or closed would otherwise overwrite the
		// value with "".
		value, err := unlessInterrupted(ctx, in)
		if err == nil && len(value) == 0 {
			err = &usageError{errors.New("no value: none is given, and standard input is empty"), `for an empty value give "" or --file -`}
		}
		return value, err
	}
	return unlessInterrupted(ctx, func() ([]byte, error) { return os.ReadFile(file) })
}

// unlessInterrupted calls f, which may read from a terminal or an idle pipe, and returns
// earlier if ctx ends.
func unlessInterrupted(ctx context.Context, f func() ([]byte, error)) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	read := make(chan result, 1)
	go func() {
		b, err := f()
		read <- result{b, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case is := <-read:
		return is.b, is.err
	}
}

func (a *app) write(ctx context.Context, t *target, replicas int, f func(n replica) error) error {
	if t.dir != "" && replicas > 0 {
		return &usageError{errors.New("--replicas with --dir: a stopped replica has no peers"), "leave it out, or write to a served replica"}
	}
	if replicas < 0 {
		return &usageError{fmt.Errorf("--replicas %d", replicas), "want a number of peers"}
	}
	n, err := t.open(a.openToWrite)
	return with(n, err, f)
}

func newDel(a *app) *cobra.Command {
	var t target
	var replicas int
	var on ifFlag
	c := &cobra.Command{
		Use:   "del KEY",
		Short: "Delete a key",
		Long:  `Delete a key, with --if as "levelrepl put" writes one. It is no error if there is no such key.`,
		Args:  args(1, 1, "one key"),
	}
	t.flags(c)
	c.Flags().IntVar(&replicas, "replicas", 0, "wait until that many `peers` have it on disk")
	on.flag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		key, err := a.encoding.parse(args[0])
		if err != nil {
			return err
		}
		cond, err := on.condition()
		if err != nil {
			return err
		}
		return a.write(c.Context(), &t, replicas, func(n replica) error { return a.told(key, n.del(c.Context(), key, cond, replicas)) })
	}
	return c
}

func newScan(a *app) *cobra.Command {
	var t target
	var from, to string
	var limit int
	var keys bool
	c := &cobra.Command{
		Use:   "scan [PREFIX]",
		Short: "List keys and values",
		Long: `List keys in order, those that begin with PREFIX if it is given: key, tab, value on a
line. With --json each line is an object. The listing is not a snapshot: it may or may not
have what is written meanwhile.`,
		Args: args(0, 1, "at most one prefix"),
	}
	t.flags(c)
	a.jsonFlag(c)
	c.Flags().StringVar(&from, "from", "", "begin at this `key`")
	c.Flags().StringVar(&to, "to", "", "end before this `key`")
	c.Flags().IntVarP(&limit, "limit", "n", 0, "print at most that many; 0: all")
	c.Flags().BoolVarP(&keys, "keys", "k", false, "print keys only")
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := a.span(args, from, to, c.Flags().Changed("to"))
		if err != nil {
			return err
		}
		s.values = !keys
		n, err := t.open(plainly)
		return with(n, err, func(n replica) error { return a.scan(c.Context(), n, s, limit) })
	}
	return c
}

// span returns the span of the keys that have the prefix and lie within the bounds.
func (a *app) span(prefix []string, from, to string, bounded bool) (s span, err error) {
	s.limit = pageEntries
	if len(prefix) > 0 {
		p, err := a.encoding.parse(prefix[0])
		if err != nil {
			return s, err
		}
		r := util.BytesPrefix(p)
		s.from, s.to = r.Start, r.Limit
	}
	lower, err := a.encoding.parse(from)
	if err != nil {
		return s, err
	}
	if string(lower) > string(s.from) {
		s.from = lower
	}
	if bounded {
		upper, err := a.encoding.parse(to)
		if err != nil {
			return s, err
		}
		if s.to == nil || string(upper) < string(s.to) {
			s.to = upper
		}
	}
	return s, nil
}

func (a *app) scan(ctx context.Context, n replica, s span, limit int) error {
	if limit > 0 {
		s.limit = min(s.limit, limit)
	}
	printed := 0
	for e, err := range each(ctx, n, s) {
		if err != nil {
			return err
		}
		switch {
		case a.json:
			err = a.lineJSON(e)
		case s.values:
			_, err = fmt.Fprintf(a.out, "%s\t%s\n", a.encoding.show(e.Key), a.encoding.show(e.Value))
		default:
			_, err = fmt.Fprintln(a.out, a.encoding.show(e.Key))
		}
		if err != nil {
			return err
		}
		if printed++; printed == limit {
			break
		}
	}
	return nil
}
