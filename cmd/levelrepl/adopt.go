package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func newAdopt(a *app) *cobra.Command {
	var d directory
	var cluster string
	c := &cobra.Command{
		Use:   "adopt DIR",
		Short: "Log what a directory holds, so that it replicates",
		Long: `Log what a stopped directory holds and its log does not know: everything, if it was
never replicated, else what a program wrote to it past the replicator. It may be interrupted
and repeated. "levelrepl serve" does it by itself for a directory that was never
replicated.`,
		Args: args(1, 1, "one directory"),
	}
	d.flags(c)
	a.jsonFlag(c)
	c.Flags().StringVar(&cluster, "cluster", "", "the cluster's `name`, if the directory was never replicated")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.adopt(c.Context(), args[0], cluster, c.Flags().Changed("cluster"), &d)
	}
	return c
}

// adopted is what adopt did.
type adopted struct {
	Keys   int64  `json:"keys"`   // that the directory holds
	Logged uint64 `json:"logged"` // writes and deletions that its log did not know
}

func (a *app) adopt(ctx context.Context, dir, cluster string, named bool, d *directory) error {
	have, replicated, err := clusterOf(dir)
	switch {
	case err != nil:
		return err
	case replicated && named && have != cluster:
		return &usageError{fmt.Errorf("%s belongs to cluster %q, not %q", dir, have, cluster), "leave --cluster out"}
	case replicated:
		cluster = have
	}
	l, err := a.openCluster(dir, cluster, d)
	if err != nil {
		return err
	}
	select {
	case <-l.db.Ready(): // what it held when it was first opened is logged
	case <-ctx.Done():
	}
	err = ctx.Err()
	if err == nil {
		err = l.db.Adopt(ctx)
	}
	s := l.db.Status()
	done := adopted{Keys: s.Keys}
	for _, claim := range s.VersionVector {
		if claim.Origin == s.Origin {
			done.Logged = claim.Seq
		}
	}
	if err := errors.Join(err, l.Close()); err != nil {
		if ctx.Err() != nil {
			return &hintedError{errors.New("interrupted; what was logged stays logged"), "levelrepl adopt " + dir + " goes on where it was"}
		}
		return err
	}
	if a.json {
		return a.printJSON(done)
	}
	_, err = fmt.Fprintf(a.out, "%s with a value, %d logged now\n", plural(done.Keys, "key"), done.Logged)
	return err
}
