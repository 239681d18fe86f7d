package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

func newVerify(a *app) *cobra.Command {
	var d directory
	c := &cobra.Command{
		Use:   "verify DIR",
		Short: "Check a stopped directory: index against log against values",
		Long: `Read all of a stopped directory and compare log-index, log and values with each
other, key by key. The directory is not changed. The exit code is 1 if something does
not fit together.`,
		Args: args(1, 1, "one directory"),
	}
	d.flags(c)
	a.jsonFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := a.openShadow(args[0], &d)
		if err != nil {
			return err
		}
		r, err := l.db.Verify(c.Context())
		if err = errors.Join(err, l.Close()); err != nil && r.OK() {
			return err
		}
		return a.printReport(args[0], &r)
	}
	return c
}

func (a *app) printReport(dir string, r *replicator.Report) error {
	bad := int64(len(r.Faults)) + r.More
	if a.json {
		if err := a.printJSON(r); err != nil || bad == 0 {
			return err
		}
		return &foundError{}
	}
	for _, f := range r.Faults {
		if f.Key == nil {
			fmt.Fprintln(a.out, f.Problem)
		} else {
			fmt.Fprintf(a.out, "%s: %s\n", a.encoding.show(f.Key), f.Problem)
		}
	}
	if r.More > 0 {
		fmt.Fprintf(a.out, "… and %d more\n", r.More)
	}
	fmt.Fprintf(a.out, "%s: %s, %s, digest %s\n", dir, plural(int(r.Keys), "key"), plural(int(r.Versions), "version"), r.Digest)
	if bad == 0 {
		return nil
	}
	return &foundError{fmt.Sprintf("%s in %s", plural(int(bad), "fault"), dir)}
}

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
	Digest *replicator.Digest `json:"digest,omitempty"` // none if it was never replicated
	Keys   int64              `json:"keys"`
}

type difference struct {
	Key octets `json:"key"`
	How string `json:"how"` // "only in a", "only in b", "other versions", "other value"
}

func newCompare(a *app) *cobra.Command {
	var d directory
	var full bool
	var limit int
	c := &cobra.Command{
		Use:   "compare A B",
		Short: "Compare two nodes, or two stopped directories",
		Long: `Compare two nodes, each given by the address of a served one or by the directory of a
stopped one. Equal digests settle it; otherwise, and with --full, all keys are compared
and those that differ are named. The exit code is 1 if there are any. Directories are
not changed, and need not be replicated: then keys and values are compared.

Between nodes that are being written to, differences are what has not yet arrived.`,
		Args: args(2, 2, "two addresses or directories"),
	}
	d.flags(c)
	a.jsonFlag(c)
	c.Flags().BoolVar(&full, "full", false, "compare every key and value even if the digests are equal")
	c.Flags().IntVarP(&limit, "limit", "n", 1000, "name so many keys at most")
	c.RunE = func(c *cobra.Command, args []string) error {
		left, err := a.openEither(args[0], &d)
		return with(left, err, func(left node) error {
			right, err := a.openEither(args[1], &d)
			return with(right, err, func(right node) error {
				result := comparison{A: side{Name: args[0]}, B: side{Name: args[1]}, Differences: []difference{}}
				if err := a.compare(c.Context(), left, right, &result, full, limit); err != nil {
					return err
				}
				return a.printComparison(&result)
			})
		})
	}
	return c
}

// openEither opens a directory, replicated or not, or an address.
func (a *app) openEither(arg string, d *directory) (node, error) {
	if !isDirectory(arg) {
		return newRemote(arg)
	}
	_, replicated, err := clusterOf(arg)
	switch {
	case err != nil:
		return nil, err
	case replicated:
		return a.openShadow(arg, d)
	}
	return openPlain(arg)
}

// logged tells whether a node has a log and a digest.
func logged(n node) bool {
	l, ok := n.(*local)
	return !ok || l.db != nil
}

func (a *app) compare(ctx context.Context, left, right node, c *comparison, full bool, limit int) error {
	for _, s := range []struct {
		n node
		s *side
	}{{left, &c.A}, {right, &c.B}} {
		if !logged(s.n) {
			continue
		}
		status, err := s.n.status(ctx)
		if err != nil {
			return err
		}
		s.s.Digest, s.s.Keys = &status.Digest, status.Keys
	}
	both := c.A.Digest != nil && c.B.Digest != nil
	if c.Same = both && *c.A.Digest == *c.B.Digest; c.Same && !full {
		return nil
	}
	err := a.compareKeys(ctx, left, right, both, &c.A.Keys, &c.B.Keys, func(key []byte, how string) {
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
		if s.Digest != nil {
			digest = "digest " + s.Digest.String()
		}
		fmt.Fprintf(a.out, "%s: %s, %s\n", s.Name, plural(int(s.Keys), "key"), digest)
	}
	if c.Same {
		_, err := fmt.Fprintln(a.out, "they hold the same")
		return err
	}
	return &foundError{fmt.Sprintf("%s and %s differ in %s", c.A.Name, c.B.Name, plural(len(c.Differences)+int(c.More), "key"))}
}
