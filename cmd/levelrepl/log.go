package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

// logView is what log prints.
type logView struct {
	Origins []originView `json:"origins"`
	Entries []logEntry   `json:"entries,omitempty"` // the latest, oldest first
}

// originView is the log of one origin, over all replicas that were asked.
type originView struct {
	Origin  replicator.Origin `json:"origin"`
	Of      string            `json:"of,omitempty"`      // the replica whose incarnation it is, if that was asked
	Seq     uint64            `json:"seq"`               // the last write that any of them knows
	Durable uint64            `json:"durable"`           // of those, on disk at all of them
	Entries *int64            `json:"entries,omitempty"` // live versions, if they were counted
	Behind  map[string]uint64 `json:"behind"`            // replica or peer: writes it lacks
}

type logEntry struct {
	Key octets `json:"key"`
	version
}

func newLog(a *app) *cobra.Command {
	var t target
	var entries int
	c := &cobra.Command{
		Use:   "log [ADDR...]",
		Short: "Show the logs: origins, how far they are known, which replicas lag",
		Long: `Show the log of every origin (one incarnation of one database): its last write, how
much of it all replicas have on disk, and how much each replica lacks. Of the peers of a
single replica only the sum over all logs is known; name several addresses to see each.

--entries also lists the latest live entries of the first replica and counts them, for
which it reads all keys; deleted keys are not among them.`,
	}
	t.flags(c)
	a.jsonFlag(c)
	c.Flags().IntVarP(&entries, "entries", "n", 0, "list the latest `N` live entries, and count all")
	c.RunE = func(c *cobra.Command, addrs []string) error {
		if t.dir != "" && len(addrs) > 0 {
			return &usageError{errors.New("addresses and --dir"), "give one of the two"}
		}
		if t.addr != "" {
			addrs = append(addrs, t.addr)
		}
		if t.dir == "" {
			replicas, err := remotes(addrs)
			if err != nil {
				return err
			}
			all := askAll(c.Context(), replicas)
			if err := verdict(all, nil); err != nil {
				return err
			}
			return a.log(c.Context(), replicas[0], all, entries)
		}
		l, err := a.openShadow(t.dir, &t.directory)
		return with(l, err, func(n replica) error {
			s, err := n.status(c.Context())
			if err != nil {
				return err
			}
			return a.log(c.Context(), n, []seen{{Addr: t.dir, Status: &s}}, entries)
		})
	}
	return c
}

func (a *app) log(ctx context.Context, first replica, all []seen, entries int) error {
	v := logView{Origins: origins(all)}
	if entries > 0 {
		counts, latest, err := a.latest(ctx, first, entries)
		if err != nil {
			return err
		}
		v.Entries = latest
		for i := range v.Origins {
			n := counts[v.Origins[i].Origin]
			v.Origins[i].Entries = &n
		}
	}
	if a.json {
		return a.printJSON(v)
	}
	return a.printLog(&v, all)
}

// origins combines what all replicas know of all origins.
func origins(all []seen) []originView {
	byOrigin, names := map[replicator.Origin]*originView{}, names(all)
	for n, s := range all {
		for _, c := range s.Status.VersionVector {
			o := byOrigin[c.Origin]
			if o == nil {
				o = &originView{Origin: c.Origin, Durable: c.Durable, Behind: map[string]uint64{}}
				byOrigin[c.Origin] = o
			}
			o.Seq = max(o.Seq, c.Seq)
			if c.Own {
				o.Of = names[n]
			}
		}
	}
	list := []originView{}
	for _, o := range byOrigin {
		for n, s := range all {
			i := slices.IndexFunc(s.Status.VersionVector, func(c replicator.VectorEntry) bool { return c.Origin == o.Origin })
			var c replicator.VectorEntry
			if i >= 0 {
				c = s.Status.VersionVector[i]
			}
			o.Durable = min(o.Durable, c.Durable)
			if c.Seq < o.Seq {
				o.Behind[names[n]] = o.Seq - c.Seq
			}
		}
		list = append(list, *o)
	}
	slices.SortFunc(list, func(a, b originView) int {
		return cmp.Or(strings.Compare(a.Of, b.Of), strings.Compare(a.Origin.String(), b.Origin.String()))
	})
	return list
}

// latest counts the live entries of each origin and finds the last that were written.
func (a *app) latest(ctx context.Context, n replica, limit int) (map[replicator.Origin]int64, []logEntry, error) {
	bar := a.newBar()
	defer bar.end()
	counts, done := map[replicator.Origin]int64{}, int64(0)
	var list []logEntry
	older := func(a, b logEntry) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Origin.String(), b.Origin.String()), cmp.Compare(a.Seq, b.Seq))
	}
	for e, err := range each(ctx, n, span{limit: pageEntries, versions: true}) {
		if err != nil {
			return nil, nil, err
		}
		for _, v := range e.Versions {
			counts[v.Origin]++
			list = append(list, logEntry{e.Key, v})
		}
		if len(list) > 2*limit+pageEntries {
			slices.SortFunc(list, older)
			list = slices.Delete(list, 0, len(list)-limit)
		}
		done++
		bar.at("log", done, 0)
	}
	slices.SortFunc(list, older)
	return counts, list[max(0, len(list)-limit):], nil
}

func (a *app) printLog(v *logView, all []seen) error {
	head := []string{"ORIGIN", "OF", "WRITES", "ON DISK"}
	if len(v.Origins) > 0 && v.Origins[0].Entries != nil {
		head = append(head, "LIVE")
	}
	t := newTable(a.out, append(head, "BEHIND")...)
	for _, o := range v.Origins {
		cells := []string{o.Origin.Short(), o.Of, humanize.Comma(int64(o.Seq)), humanize.Comma(int64(o.Durable))}
		if o.Entries != nil {
			cells = append(cells, humanize.Comma(*o.Entries))
		}
		t.row(append(cells, behind(o.Behind))...)
	}
	if err := t.end(); err != nil {
		return err
	}
	if len(all) == 1 {
		for _, p := range all[0].Status.Peers {
			if p.Lag > 0 {
				fmt.Fprintf(a.out, "%s lacks %s, last heard %s\n", peerName(p), plural(p.Lag, "write"), ago(p.Last, time.Now()))
			}
		}
	}
	if len(v.Entries) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	t = newTable(a.out, "VERSION", "WRITTEN", "CLOCK", "WHAT", "KEY")
	for _, e := range v.Entries {
		what := "put"
		if e.Deleted {
			what = "delete"
		}
		t.row(e.name(), e.Time.Local().Format(time.DateTime), strconv.FormatUint(e.Clock, 10), what, shorten(a.encoding.show(e.Key), shownWidth))
	}
	return t.end()
}

func behind(lags map[string]uint64) string {
	var list []string
	for name, n := range lags {
		list = append(list, fmt.Sprintf("%s by %s", name, humanize.Comma(int64(n))))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}
