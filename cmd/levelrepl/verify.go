package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

func newVerify(a *app) *cobra.Command {
	var d directory
	c := &cobra.Command{
		Use:   "verify DIR|ADDR",
		Short: "Check a replica: index against log against values",
		Long: `Read all that a replica holds, a stopped one by its directory or a served one by its
address, and compare log-index, log and values with each other, key by key. Nothing is
changed. The exit code is 1 if there are faults.`,
		Args: args(1, 1, "one directory or address"),
	}
	d.flags(c)
	a.jsonFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		n, err := a.openEither(args[0], &d, a.openShadow)
		return with(n, err, func(n replica) error {
			r, err := n.verify(c.Context())
			if err != nil && r.OK() {
				return err
			}
			return a.printReport(nameOf(n, args[0]), &r)
		})
	}
	return c
}

func newRepair(a *app) *cobra.Command {
	var d directory
	c := &cobra.Command{
		Use:   "repair ADDR|DIR",
		Short: "Repair a corrupted replica with what its peers have",
		Long: `Verify a replica and repair its faults: with what is left of log, log-index and values,
and in a served replica with what its peers have. A value that was changed past the log is
restored as it was logged; to keep it, adopt it first. Nothing is dropped without a
replacement. The exit code is 1 if faults are left.`,
		Args: args(1, 1, "one address or directory"),
	}
	d.flags(c)
	a.jsonFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		n, err := a.openEither(args[0], &d, a.openToWrite)
		return with(n, err, func(n replica) error {
			r, err := n.repair(c.Context())
			if err != nil && r.OK() {
				return err
			}
			if !a.json {
				fmt.Fprintf(a.out, "%s repaired\n", plural(r.Mended, "fault"))
			}
			return a.printReport(nameOf(n, args[0]), &r)
		})
	}
	return c
}

func (a *app) printReport(dir string, r *replicator.Report) error {
	bad := int64(len(r.Faults)) + r.Omitted
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
	if r.Omitted > 0 {
		fmt.Fprintf(a.out, "… and %d more\n", r.Omitted)
	}
	fmt.Fprintf(a.out, "%s: %s, %s, digest %s\n", safe(dir), plural(r.Keys, "key"), plural(r.Versions, "version"), r.Digest)
	if bad == 0 {
		return nil
	}
	return &foundError{fmt.Sprintf("%s in %s", plural(bad, "fault"), dir)}
}
