package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

// seen is what an address answered when asked for its status.
type seen struct {
	Addr   string             `json:"address"`
	Error  string             `json:"error,omitempty"`
	Status *replicator.Status `json:"status,omitempty"`
}

func newStatus(a *app) *cobra.Command {
	var watch time.Duration
	var check bool
	c := &cobra.Command{
		Use:   "status [ADDR...]",
		Short: "Show nodes and their peers: who agrees with whom, who lags",
		Long: `Show what served nodes know of themselves and of their peers. For several addresses,
also who holds the same as whom, and how many writes each lacks that another has.`,
		Example: `  levelrepl status
  levelrepl status 127.0.0.1:9080 127.0.0.1:9081 127.0.0.1:9082 --watch=1s`,
	}
	a.jsonFlag(c)
	c.Flags().DurationVarP(&watch, "watch", "w", 0, "show it again and again, with this `pause`")
	c.Flags().Lookup("watch").NoOptDefVal = "2s"
	c.Flags().BoolVar(&check, "check", false, "exit with 1 unless all answer, take writes, and agree with their peers and each other")
	c.RunE = func(c *cobra.Command, addrs []string) error {
		nodes, err := remotes(addrs)
		if err != nil {
			return err
		}
		if watch < 0 {
			return &usageError{fmt.Errorf("--watch %v", watch), "want a pause, as 2s"}
		}
		for {
			all := askAll(c.Context(), nodes)
			var problems []string
			if check {
				problems = complaints(all)
			}
			if err := a.showStatus(all, watch > 0); err != nil {
				return err
			}
			if watch == 0 {
				return verdict(all, problems)
			}
			select {
			case <-c.Context().Done():
				return nil
			case <-time.After(watch):
			}
		}
	}
	return c
}

func remotes(addrs []string) ([]*remote, error) {
	if len(addrs) == 0 {
		addrs = []string{""}
	}
	nodes := make([]*remote, len(addrs))
	for i, addr := range addrs {
		n, err := newRemote(addr)
		if err != nil {
			return nil, err
		}
		nodes[i] = n
	}
	return nodes, nil
}

// askAll asks all nodes at once, so that their answers are of about one moment.
func askAll(ctx context.Context, nodes []*remote) []seen {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all := make([]seen, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			all[i].Addr = strings.TrimPrefix(n.base, "http://")
			s, err := n.status(ctx)
			if err != nil {
				all[i].Error = err.Error()
				return
			}
			all[i].Status = &s
		})
	}
	wg.Wait()
	return all
}

// verdict is the error that status ends with.
func verdict(all []seen, problems []string) error {
	if len(problems) > 0 {
		return &foundError{strings.Join(problems, "; ")}
	}
	var errs []error
	for _, s := range all {
		if s.Error != "" {
			errs = append(errs, errors.New(s.Error))
		}
	}
	if len(errs) > 0 {
		return &hintedError{errors.Join(errs...), "levelrepl serve DIR says where it answers HTTP"}
	}
	return nil
}

// complaints lists what is not as it should be.
func complaints(all []seen) (list []string) {
	first := -1
	for i, s := range all {
		if s.Status == nil {
			list = append(list, s.Error)
			continue
		}
		if s.Status.Failed != "" {
			list = append(list, s.Addr+" takes no writes: "+s.Status.Failed)
		}
		for _, p := range s.Status.Peers {
			if !p.Agrees {
				list = append(list, fmt.Sprintf("%s and its peer %s do not agree", s.Addr, peerName(p)))
			}
		}
		if first < 0 {
			first = i
		} else if s.Status.Digest != all[first].Status.Digest {
			list = append(list, fmt.Sprintf("%s and %s do not agree", all[first].Addr, s.Addr))
		}
	}
	return list
}

func (a *app) showStatus(all []seen, again bool) error {
	if a.json {
		if again {
			return a.lineJSON(all)
		}
		return a.printJSON(all)
	}
	var b strings.Builder
	if again && a.outTerm {
		b.WriteString("\x1b[H\x1b[2J")
	}
	if again {
		fmt.Fprintln(&b, time.Now().Format(time.DateTime))
	}
	if len(all) > 1 {
		printOverview(&b, all)
		printLags(&b, all)
	}
	for _, s := range all {
		if s.Status != nil {
			printNode(&b, s, len(all) == 1)
		}
	}
	_, err := io.WriteString(a.out, b.String())
	return err
}

// printOverview prints a line for each node. Nodes with the same letter hold the same.
func printOverview(out io.Writer, all []seen) {
	t := newTable(out, "NODE", "ADDRESS", "HOLDS", "KEYS", "CONFLICTS", "DELETED", "CHANGES/S", "PEERS", "STATE")
	for i, s := range all {
		if s.Status == nil {
			t.row("", s.Addr, "?", "", "", "", "", "", shorten(s.Error, shownWidth))
			continue
		}
		n := s.Status
		reached := 0
		for _, p := range n.Peers {
			if p.State == "ok" {
				reached++
			}
		}
		t.row(n.Name, s.Addr, group(all, i), humanize.Comma(n.Keys), humanize.Comma(n.Conflicts), humanize.Comma(n.Tombstones),
			strconv.FormatFloat(n.Velocity, 'f', 1, 64), fmt.Sprintf("%d/%d", reached, len(n.Peers)), state(n))
	}
	_ = t.end()
}

// group gives a letter that nodes share who hold the same.
func group(all []seen, i int) string {
	var digests []replicator.Digest
	for _, s := range all[:i+1] {
		if s.Status != nil && !slices.Contains(digests, s.Status.Digest) {
			digests = append(digests, s.Status.Digest)
		}
	}
	n := slices.Index(digests, all[i].Status.Digest)
	if n < 26 {
		return string(rune('A' + n))
	}
	return strconv.Itoa(n + 1)
}

func state(s *replicator.Status) string {
	switch {
	case s.Failed != "":
		return "FAILED: " + s.Failed
	case s.ReadOnly:
		return "read-only"
	case !s.Ready:
		return "starting"
	}
	return "ok"
}

// printLags prints how many writes each node lacks that another has.
func printLags(out io.Writer, all []seen) {
	fmt.Fprintln(out, "\nwrites that the row's node lacks and the column's has")
	head := []string{""}
	for _, s := range all {
		if s.Status != nil {
			head = append(head, s.Status.Name)
		}
	}
	t := newTable(out, head...)
	for _, row := range all {
		if row.Status == nil {
			continue
		}
		cells := []string{row.Status.Name}
		for _, column := range all {
			switch {
			case column.Status == nil:
			case column.Addr == row.Addr:
				cells = append(cells, "·")
			default:
				cells = append(cells, humanize.Comma(int64(lag(row.Status, column.Status))))
			}
		}
		t.row(cells...)
	}
	_ = t.end()
}

// lag counts the writes that other claims and s does not.
func lag(s, other *replicator.Status) (n uint64) {
	have := map[replicator.Origin]uint64{}
	for _, c := range s.Claims {
		have[c.Origin] = c.Seq
	}
	for _, c := range other.Claims {
		if c.Seq > have[c.Origin] {
			n += c.Seq - have[c.Origin]
		}
	}
	return n
}

func peerName(p replicator.PeerStatus) string {
	if p.Name == "" || p.Name == p.Addr {
		return p.Addr
	}
	return p.Name + " (" + p.Addr + ")"
}

// printNode prints one node, in full if it is the only one, and its peers.
func printNode(out io.Writer, seen seen, full bool) {
	s, now := seen.Status, time.Now()
	if !full {
		fmt.Fprintf(out, "\npeers of %s\n", s.Name)
	} else {
		t := newTable(out, "node", s.Name)
		if s.Cluster != "" {
			t.row("cluster", s.Cluster)
		}
		t.row("state", state(s))
		t.row("peers on", s.Addr)
		t.row("keys", fmt.Sprintf("%s, %s in conflict, %s deleted and remembered", humanize.Comma(s.Keys), humanize.Comma(s.Conflicts), humanize.Comma(s.Tombstones)))
		t.row("digest", s.Digest.String())
		t.row("changes/s", fmt.Sprintf("%.1f, %s between rounds", s.Velocity, coarse(s.Pause)))
		t.row("sessions", fmt.Sprintf("%s, %s versions in (%s), %s out (%s)", humanize.Comma(s.Sessions), humanize.Comma(s.Pulled), humanize.IBytes(uint64(s.BytesIn)), humanize.Comma(s.Served), humanize.IBytes(uint64(s.BytesOut))))
		if s.Mismatches > 0 {
			t.row("REPAIRED", fmt.Sprintf("%s had to come back after a digest differed: levelrepl verify the directories", plural(int(s.Mismatches), "version")))
		}
		_ = t.end()
		printWork(out, s, now)
		fmt.Fprintln(out)
	}
	if len(s.Peers) == 0 {
		fmt.Fprintln(out, "no peers")
		return
	}
	t := newTable(out, "PEER", "ADDRESS", "STATE", "AGREES", "LACKS", "LAST SESSION", "IN", "OUT", "ERROR")
	for _, p := range s.Peers {
		t.row(p.Name, p.Addr, p.State, yes(p.Agrees), humanize.Comma(p.Lag), ago(p.Last, now), humanize.IBytes(uint64(p.BytesIn)), humanize.IBytes(uint64(p.BytesOut)), p.Error)
	}
	_ = t.end()
}

// printWork prints what is under way, who holds back what, and who was turned away.
func printWork(out io.Writer, s *replicator.Status, now time.Time) {
	for _, w := range s.Work {
		of, left := "", ""
		if w.Total > 0 {
			of = " of " + humanize.Comma(w.Total)
		}
		if w.Left > 0 {
			left = ", " + coarse(w.Left) + " left"
		}
		fmt.Fprintf(out, "at work: %s %s, %s%s keys%s\n", w.Work, w.Peer, humanize.Comma(w.Keys), of, left)
	}
	for _, b := range s.Blockers {
		fmt.Fprintf(out, "deletions are remembered for %s (%s), last seen %s\n", b.Name, b.Origin.Short(), ago(b.Seen, now))
	}
	for _, r := range s.Refusals {
		fmt.Fprintf(out, "turned away: %s, %d times, last %s: %s\n", r.From, r.Count, ago(r.Last, now), r.Reason)
	}
}
