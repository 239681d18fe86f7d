package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newConflicts(a *app) *cobra.Command {
	var t target
	var check bool
	c := &cobra.Command{
		Use:   "conflicts",
		Short: "List keys in conflict, with all their versions",
		Long: `List the keys with concurrent versions that differ. Every version is kept until
somebody writes the key; "levelrepl resolve" does so. The winner, which reads return, is
marked with *.`,
		Args: args(0, 0, "no arguments"),
	}
	t.flags(c)
	a.jsonFlag(c)
	c.Flags().BoolVar(&check, "check", false, "exit with 1 if there are any")
	c.RunE = func(c *cobra.Command, _ []string) error {
		n, err := t.open(a.openShadow)
		return with(n, err, func(n replica) error {
			found, err := a.listConflicts(c.Context(), n)
			if err == nil && check && found > 0 {
				return &foundError{fmt.Sprintf("%s in conflict", plural(found, "key"))}
			}
			return err
		})
	}
	return c
}

func (a *app) listConflicts(ctx context.Context, n replica) (found int, err error) {
	for e, err := range eachConflict(ctx, n) {
		if err != nil {
			return found, err
		}
		found++
		if a.json {
			err = a.lineJSON(e)
		} else {
			err = a.printConflict(e)
		}
		if err != nil {
			return found, err
		}
	}
	if found == 0 && !a.json {
		fmt.Fprintln(a.out, "no conflicts")
	}
	return found, nil
}

const shownWidth = 60 // of a value in a table

func (a *app) printConflict(e entry) error {
	fmt.Fprintln(a.out, a.encoding.show(e.Key))
	t := newTable(a.out, "", "N", "VERSION", "WRITTEN", "CLOCK", "VALUE")
	for i, v := range e.Versions {
		mark, value := "", "(deleted)"
		if !v.Deleted {
			value = shorten(a.encoding.show(v.Value), shownWidth)
		}
		if v.Deleted && e.Value == nil || !v.Deleted && e.Value != nil && string(v.Value) == string(e.Value) {
			mark = "*"
		}
		t.row(mark, strconv.Itoa(i+1), v.name(), v.Time.Local().Format(time.DateTime), strconv.FormatUint(v.Clock, 10), value)
	}
	return t.end()
}

func newResolve(a *app) *cobra.Command {
	var t target
	var take, value, file string
	var del bool
	var on ifFlag
	c := &cobra.Command{
		Use:   "resolve KEY",
		Short: "Resolve a conflict",
		Long: `Resolve a conflict by writing the key: one of its versions once more (--take, with the
number or the name that "levelrepl conflicts" lists), another value (--value, --file), or
a deletion (--delete). The write replaces all versions that the replica holds then; with
--if, only those that "levelrepl get --if" or "levelrepl conflicts --json" has given the
tag of. A version keeps its name, but its number may change.`,
		Example: `  levelrepl resolve cart --take 2
  levelrepl resolve cart --take 3f2a9c1e/12
  levelrepl resolve cart --value '{"items":[1,2]}'`,
		Args: args(1, 1, "one key"),
	}
	t.flags(c)
	f := c.Flags()
	f.StringVar(&take, "take", "", "the version to keep, by `number or name`")
	f.StringVar(&value, "value", "", "the `value` to write")
	f.StringVar(&file, "file", "", "`file` with the value to write; - is standard input")
	f.BoolVar(&del, "delete", false, "delete the key")
	on.flag(c)
	c.MarkFlagsMutuallyExclusive("take", "value", "file", "delete")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := resolution{take: take, del: del}
		var err error
		if r.on, err = on.condition(); err != nil {
			return err
		}
		if r.key, err = a.encoding.parse(args[0]); err != nil {
			return err
		}
		switch {
		case c.Flags().Changed("value"):
			r.value, err = a.value(c.Context(), []string{value}, "")
		case file != "":
			r.value, err = a.value(c.Context(), nil, file)
		case take == "" && !del:
			err = &usageError{errors.New("resolve needs to know how"), "one of --take, --value, --file and --delete"}
		}
		if err != nil {
			return err
		}
		n, err := t.open(a.openToWrite)
		return with(n, err, func(n replica) error { return a.resolve(c.Context(), n, r) })
	}
	return c
}

type resolution struct {
	key, value []byte
	take       string
	del        bool
	on         condition
}

func (a *app) resolve(ctx context.Context, n replica, r resolution) error {
	vs, err := n.versions(ctx, r.key)
	if err != nil {
		return err
	}
	shown := a.encoding.show(r.key)
	if !differ(vs) {
		return &foundError{fmt.Sprintf("%s is not in conflict; levelrepl put and del write it", shown)}
	}
	switch {
	case r.del:
		return a.told(r.key, n.del(ctx, r.key, r.on, 0))
	case r.take == "":
		return a.told(r.key, n.put(ctx, r.key, r.value, r.on, 0))
	}
	name, err := choose(vs, r.take)
	if err != nil {
		return err
	}
	err = a.told(r.key, n.take(ctx, r.key, name, r.on))
	if errors.Is(err, errNoConflict) || errors.Is(err, errNoVersion) {
		return &foundError{fmt.Sprintf("%s changed meanwhile; look at levelrepl conflicts again", shown)}
	}
	return err
}

// differ reports whether versions are in conflict: those with equal content are not.
func differ(vs []version) bool {
	for i := range vs {
		if vs[i].Deleted != vs[0].Deleted || string(vs[i].Value) != string(vs[0].Value) {
			return true
		}
	}
	return false
}

// choose returns the full name of the version that take stands for.
func choose(vs []version, take string) (string, error) {
	number, err := strconv.Atoi(take)
	for i := range vs {
		if err == nil && number == i+1 || vs[i].is(take) {
			return fmt.Sprintf("%s/%d", vs[i].Origin, vs[i].Seq), nil
		}
	}
	names := make([]string, len(vs))
	for i := range vs {
		names[i] = fmt.Sprintf("%d (%s)", i+1, vs[i].name())
	}
	return "", &foundError{fmt.Sprintf("there is no version %s; there are %s", take, strings.Join(names, ", "))}
}
