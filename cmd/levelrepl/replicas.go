package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/level-replicator/replicator"
)

// printOverview prints a line for each replica. Replicas with the same letter hold the same.
func printOverview(out io.Writer, all []seen) {
	t := newTable(out, "REPLICA", "ADDRESS", "HOLDS", "KEYS", "CONFLICTS", "DELETED", "CHANGES/S", "PEERS", "STATE")
	for i, s := range all {
		if s.Status == nil {
			t.row("", s.Addr, "?", "", "", "", "", "", shorten(s.Error, shownWidth))
			continue
		}
		n := s.Status
		reached, known := 0, 0
		for _, p := range n.Peers {
			if counts(p) {
				known++
			}
			if counts(p) && p.State == replicator.PeerOK {
				reached++
			}
		}
		t.row(n.Name, s.Addr, group(all, i), humanize.Comma(n.Keys), humanize.Comma(n.Conflicts), humanize.Comma(n.Tombstones),
			strconv.FormatFloat(n.Velocity, 'f', 1, 64), fmt.Sprintf("%d/%d", reached, known), state(n))
	}
	_ = t.end()
}

// group returns a letter that is the same for replicas that hold the same.
func group(all []seen, i int) string {
	if all[i].Status.Counting {
		return "…"
	}
	var digests []replicator.Digest
	for _, s := range all[:i+1] {
		if s.Status != nil && !s.Status.Counting && !slices.Contains(digests, s.Status.Digest) {
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
	case s.Starved != "":
		return "no file handles: " + s.Starved
	case s.Rewound:
		return "older than when it was closed"
	case s.ReadOnly:
		return "read-only"
	case !s.Ready:
		return "starting"
	case s.Counting:
		return "counting what it holds"
	case s.Alone:
		return "ALONE: every address that it was given leads to itself"
	}
	return "ok"
}

// names returns the replicas' names, with the address where several share one, as those do
// that listen on any address and were given none.
func names(all []seen) []string {
	list, times := make([]string, len(all)), map[string]int{}
	for _, s := range all {
		if s.Status != nil {
			times[s.Status.Name]++
		}
	}
	for i, s := range all {
		if s.Status == nil {
			continue
		}
		if list[i] = s.Status.Name; times[list[i]] > 1 {
			list[i] += " (" + s.Addr + ")"
		}
	}
	return list
}

// printLags prints how many writes each replica lacks that another has.
func printLags(out io.Writer, all []seen) {
	fmt.Fprintln(out, "\nwrites that the row's replica lacks and the column's has")
	head, names := []string{""}, names(all)
	for i, s := range all {
		if s.Status != nil {
			head = append(head, names[i])
		}
	}
	t := newTable(out, head...)
	for i, row := range all {
		if row.Status == nil {
			continue
		}
		cells := []string{names[i]}
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

// lag returns how many writes other's version vector covers and that of s does not.
func lag(s, other *replicator.Status) (n uint64) {
	have := map[replicator.Origin]uint64{}
	for _, c := range s.VersionVector {
		have[c.Origin] = c.Seq
	}
	for _, c := range other.VersionVector {
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

// printReplica prints one replica, in full if it is the only one, and its peers.
func printReplica(out io.Writer, seen seen, full bool) {
	s, now := seen.Status, time.Now()
	if !full {
		fmt.Fprintf(out, "\npeers of %s\n", s.Name)
	} else {
		t := newTable(out, "replica", s.Name)
		if s.Cluster != "" {
			t.row("cluster", s.Cluster)
		}
		t.row("state", state(s))
		t.row("peers on", s.Addr)
		t.row("keys", fmt.Sprintf("%s, %s in conflict, %s tombstones", humanize.Comma(s.Keys), humanize.Comma(s.Conflicts), humanize.Comma(s.Tombstones)))
		digest := s.Digest.String()
		if s.Counting {
			digest = "not known yet, it is counting what it holds"
		}
		t.row("digest", digest)
		t.row("changes/s", fmt.Sprintf("%.1f, %s between rounds", s.Velocity, coarse(s.Interval)))
		t.row("sessions", fmt.Sprintf("%s, %s versions in (%s), %s out (%s)", humanize.Comma(s.Sessions), humanize.Comma(s.Pulled), humanize.IBytes(uint64(s.BytesIn)), humanize.Comma(s.Served), humanize.IBytes(uint64(s.BytesOut))))
		t.row("live", live(s))
		t.row("delay", delay(s.Delay()))
		t.row("not on disk", plural(s.NotDurable, "write")+", as far as is known")
		if s.Mismatches > 0 {
			t.row("REPAIRED", fmt.Sprintf("%s came back after digests differed: run levelrepl verify on both", plural(s.Mismatches, "version")))
		}
		if s.HeldBack > 0 {
			t.row("HELD BACK", fmt.Sprintf("%s of peers: the value is above --max-value (the largest has %s), or the key above --max-key", plural(s.HeldBack, "version"), humanize.IBytes(uint64(s.Largest))))
		}
		_ = t.end()
		printWork(out, s, now)
		fmt.Fprintln(out)
	}
	if len(s.Peers) == 0 {
		fmt.Fprintln(out, "no peers")
		return
	}
	t := newTable(out, "PEER", "ADDRESS", "STATE", "AGREES", "LACKS", "LAST SESSION", "LIVE", "DELAY", "IN", "OUT", "ERROR")
	for _, p := range s.Peers {
		state := p.State
		if p.Moved {
			state = "moved"
		}
		open, took := "-", "-"
		if !p.Live.IsZero() {
			open = coarse(s.Time.Sub(p.Live))
		}
		if i := slices.IndexFunc(s.Delays, func(d replicator.Delay) bool { return d.Origin == p.Origin && d.Name != "" }); i >= 0 {
			took = quantiles(s.Delays[i])
		}
		t.row(p.Name, p.Addr, string(state), agreement(p), lacks(p), ago(p.Last, now), open, took, humanize.IBytes(uint64(p.BytesIn)), humanize.IBytes(uint64(p.BytesOut)), p.Error)
	}
	_ = t.end()
}

// live returns how many sessions are live, and what went over them.
func live(s *replicator.Status) string {
	text := fmt.Sprintf("%s, %s pushes out, %s came twice", plural(s.Live, "session"), humanize.Comma(s.Pushes), plural(s.Duplicates, "version"))
	if s.Duplicates > 0 {
		text += fmt.Sprintf(" (%.1f %%)", 100*float64(s.Duplicates)/float64(s.Duplicates+s.Pulled))
	}
	return text
}

// delay returns how long the writes of others took to become visible.
func delay(d replicator.Delay) string {
	if d.Count == 0 {
		return "-"
	}
	text := fmt.Sprintf("half within %s, 99 %% within %s, all within %s, clock differences included", coarse(d.Quantile(0.5)), coarse(d.Quantile(0.99)), coarse(d.Max))
	if d.Early > 0 {
		text += fmt.Sprintf("; %s seem to have come before they were written", humanize.Comma(d.Early))
	}
	return text
}

func quantiles(d replicator.Delay) string {
	return coarse(d.Quantile(0.5)) + "/" + coarse(d.Quantile(0.99))
}

func agreement(p replicator.PeerStatus) string {
	switch {
	case p.State == replicator.PeerSelf, p.Moved:
		return "-"
	case p.Agrees:
		return "yes"
	case p.Differs:
		return "NO" // its version vector is equal and it holds something else
	case keepsUp(p):
		return "live"
	}
	return "no"
}

// lacks returns how many writes a peer lacks, and for how long.
func lacks(p replicator.PeerStatus) string {
	if p.Lag > 0 && p.LagTime > 0 {
		return humanize.Comma(p.Lag) + " for " + coarse(p.LagTime)
	}
	return humanize.Comma(p.Lag)
}

// printWork prints what is under way, which members hold back purges, and which connections
// were refused.
func printWork(out io.Writer, s *replicator.Status, now time.Time) {
	for _, w := range s.Work {
		of, left := "", ""
		if w.Total > 0 {
			of = " of " + humanize.Comma(w.Total)
		}
		if w.Remaining > 0 {
			left = ", " + coarse(w.Remaining) + " left"
		}
		fmt.Fprintf(out, "at work: %s %s, %s%s keys%s\n", w.Work, w.Peer, humanize.Comma(w.Keys), of, left)
	}
	for _, b := range s.Blockers {
		fmt.Fprintf(out, "tombstones are kept for %s (%s), last heard %s\n", b.Name, b.Origin.Short(), ago(b.Seen, now))
	}
	for _, r := range s.Refusals {
		fmt.Fprintf(out, "turned away: %s, %d times, last %s: %s\n", r.From, r.Count, ago(r.Last, now), r.Reason)
	}
}
