package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

// comparison is what compare found.
type comparison struct {
	Same        bool         `json:"same"`
	A           side         `json:"a"`
	B           side         `json:"b"`
	Differences []difference `json:"differences"`
	More        int64        `json:"more"` // differences beyond those
}

type side struct {
	Name   string             `json:"name"`
	Digest *replicator.Digest `json:"digest,omitempty"` // none if it was never replicated, or is not known yet
	Keys   int64              `json:"keys"`
	logged bool
}

type difference struct {
	Key octets `json:"key"`
	How string `json:"how"` // "only in a", "only in b", "other versions", "other value", "corrupted in a", "corrupted in b"
}

func newCompare(a *app) *cobra.Command {
	var d directory
	var full bool
	var limit int
	c := &cobra.Command{
		Use:   "compare A B",
		Short: "Compare two replicas, or two stopped directories",
		Long: `Compare two replicas, each given by the address of a served one or by the directory of a
stopped one. Equal digests decide; otherwise, and with --full, all keys are compared and
those that differ are named. The exit code is 1 if there are any. Directories are not
changed, and need not be replicated: then keys and values are compared.

Between replicas that are being written to, differences are writes that have not arrived.`,
		Args: args(2, 2, "two addresses or directories"),
	}
	d.flags(c)
	a.jsonFlag(c)
	c.Flags().BoolVar(&full, "full", false, "compare every key and value even if the digests are equal")
	c.Flags().IntVarP(&limit, "limit", "n", 1000, "name at most that many keys")
	c.RunE = func(c *cobra.Command, args []string) error {
		left, err := a.openEither(args[0], &d, a.openAny)
		return with(left, err, func(left replica) error {
			right, err := a.openEither(args[1], &d, a.openAny)
			return with(right, err, func(right replica) error {
				result := comparison{A: side{Name: nameOf(left, args[0])}, B: side{Name: nameOf(right, args[1])}, Differences: []difference{}}
				if err := a.compare(c.Context(), left, right, &result, full, limit); err != nil {
					return err
				}
				return a.printComparison(&result)
			})
		})
	}
	return c
}

// logged reports whether a replica has a log and a digest.
func logged(n replica) bool {
	l, ok := n.(*local)
	return !ok || l.db != nil
}

func (a *app) compare(ctx context.Context, left, right replica, c *comparison, full bool, limit int) error {
	for _, s := range []struct {
		n replica
		s *side
	}{{left, &c.A}, {right, &c.B}} {
		if !logged(s.n) {
			continue
		}
		status, err := s.n.status(ctx)
		if err != nil {
			return err
		}
		s.s.Keys, s.s.logged = status.Keys, true
		if !status.Counting {
			s.s.Digest = &status.Digest
		}
	}
	if c.Same = c.A.Digest != nil && c.B.Digest != nil && *c.A.Digest == *c.B.Digest; c.Same && !full {
		return nil
	}
	err := a.compareKeys(ctx, left, right, c.A.logged && c.B.logged, &c.A.Keys, &c.B.Keys, func(key []byte, how string) {
		if len(c.Differences) < limit {
			c.Differences = append(c.Differences, difference{key, how})
		} else {
			c.More++
		}
	})
	c.Same = len(c.Differences) == 0 && c.More == 0
	return err
}

func (a *app) printComparison(c *comparison) error {
	var result error
	if !c.Same {
		result = &foundError{}
	}
	if a.json {
		return errors.Join(a.printJSON(c), result)
	}
	for _, d := range c.Differences {
		fmt.Fprintf(a.out, "%s\t%s\n", a.encoding.show(d.Key), d.How)
	}
	if c.More > 0 {
		fmt.Fprintf(a.out, "… and %d more; -n names more of them\n", c.More)
	}
	for _, s := range []side{c.A, c.B} {
		digest := "never replicated"
		switch {
		case s.Digest != nil:
			digest = "digest " + s.Digest.String()
		case s.logged:
			digest = "digest not known yet"
		}
		fmt.Fprintf(a.out, "%s: %s, %s\n", safe(s.Name), plural(s.Keys, "key"), digest)
	}
	if c.Same {
		_, err := fmt.Fprintln(a.out, "they hold the same")
		return err
	}
	return &foundError{fmt.Sprintf("%s and %s differ in %s", c.A.Name, c.B.Name, plural(int64(len(c.Differences))+c.More, "key"))}
}

// compareKeys walks the keys of two replicas side by side and calls found for each that
// differs. It counts the keys of both.
func (a *app) compareKeys(ctx context.Context, left, right replica, versions bool, nl, nr *int64, found func(key []byte, how string)) error {
	bar := a.newBar()
	defer bar.end()
	total := max(*nl, *nr)
	s := span{limit: pageEntries, sums: true, versions: versions}
	l, r := newCursor(each(ctx, left, s)), newCursor(each(ctx, right, s))
	defer l.stop()
	defer r.stop()
	*nl, *nr = 0, 0
	for l.more || r.more {
		if l.err != nil {
			return l.err
		}
		if r.err != nil {
			return r.err
		}
		order := l.compare(r)
		switch {
		case order < 0:
			found(l.Key, "only in a")
		case order > 0:
			found(r.Key, "only in b")
		case l.Corrupted:
			found(l.Key, "corrupted in a")
		case r.Corrupted:
			found(r.Key, "corrupted in b")
		case !slices.EqualFunc(l.Versions, r.Versions, sameWrite):
			found(l.Key, "other versions")
		case !bytes.Equal(l.Sum, r.Sum):
			found(l.Key, "other value")
		}
		if order <= 0 {
			l.next()
			*nl++
		}
		if order >= 0 {
			r.next()
			*nr++
		}
		bar.at("compare", max(*nl, *nr), total)
	}
	return nil
}

func sameWrite(v, w version) bool { return v.Origin == w.Origin && v.Seq == w.Seq }

// cursor stands at an entry of a listing.
type cursor struct {
	entry
	err  error
	more bool
	pull func() (entry, error, bool)
	stop func()
}

func newCursor(list iter.Seq2[entry, error]) *cursor {
	c := &cursor{}
	c.pull, c.stop = iter.Pull2(list)
	c.next()
	return c
}

func (c *cursor) next() { c.entry, c.err, c.more = c.pull() }

// compare orders two cursors by key; one at the end comes last.
func (c *cursor) compare(d *cursor) int {
	switch {
	case !c.more:
		return 1
	case !d.more:
		return -1
	}
	return bytes.Compare(c.Key, d.Key)
}
