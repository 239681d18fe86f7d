package statuspage

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
)

// view is the page in words, for the template.
type view struct {
	Title, Cluster, Name, Addr, Origin string
	Seen                               moment
	Verdict                            line
	Notes                              []line
	Velocity                           string
	Spark                              spark
	Tiles                              []tile
	Replicas                           []replica
	MoreReplicas                       string
	Work                               []work
	Conflicts                          []conflictView
	MoreConflicts                      string
	Changes                            []changeView
	Blockers, Refusals                 []string
	Origins                            string
	Claims                             []claim
	MoreClaims                         string
	Style, Script                      template.HTML
}

// line is a text with what it means: "ok", "busy", "bad" or "".
type line struct{ Class, Text string }

type moment struct{ ISO, Clock string }

type tile struct{ Class, Label, Value, Note string }

type work struct {
	Text, Note string
	Value, Max int64
}

// changeView is a key that has changed, and how.
type changeView struct{ Key, What string }

type claim struct{ Origin, Of, Seq, Durable string }

func newView(p *Page) *view {
	s := &p.Status
	v := &view{
		Cluster: s.Cluster, Name: s.Name, Addr: s.Addr, Origin: s.Origin.Short(),
		Seen:     moment{s.Time.UTC().Format(time.RFC3339), s.Time.UTC().Format(time.TimeOnly)},
		Velocity: rate(s.Velocity),
		Spark:    newSpark(s.Recent),
		Tiles:    tiles(s),
		// Not escaped: the policy has the hashes of these bytes.
		Style:  template.HTML("<style>" + pageCSS + "</style>"),
		Script: template.HTML("<script>" + pageJS + "</script>"),
	}
	v.Replicas = replicas(s)
	v.Verdict = verdict(s)
	v.Notes = notes(s)
	v.Title = v.Verdict.Text + " – " + s.Name
	if n := len(v.Replicas) - maxReplicas; n > 0 {
		v.Replicas, v.MoreReplicas = v.Replicas[:maxReplicas], fmt.Sprintf("… and %s more, none of them in trouble worse than these.", count(n))
	}
	for _, w := range s.Work {
		v.Work = append(v.Work, newWork(w))
	}
	for _, c := range p.Conflicts {
		v.Conflicts = append(v.Conflicts, newConflict(&c, s.Time))
	}
	if p.More > 0 {
		v.MoreConflicts = fmt.Sprintf("… and %s more in conflict.", plural(p.More, "key"))
	}
	if p.Error != "" {
		v.MoreConflicts = strings.TrimSpace(v.MoreConflicts + " The rest cannot be read: " + strings.TrimPrefix(p.Error, "replicator: ") + ".")
	}
	for _, c := range p.Changes {
		what := "written"
		if c.Deleted {
			what = "deleted"
		}
		v.Changes = append(v.Changes, changeView{keyText(c.Key), fmt.Sprintf("%s by %s, %s", what, cmp.Or(c.Replica, c.Origin.Short()), ago(c.Time, s.Time))})
	}
	for _, b := range s.Blockers {
		v.Blockers = append(v.Blockers, fmt.Sprintf("%s has not confirmed one for %s; last heard %s.",
			cmp.Or(b.Name, b.Origin.Short()), span(s.Time.Sub(b.Since)), ago(b.Seen, s.Time)))
	}
	for _, r := range s.Refusals {
		v.Refusals = append(v.Refusals, fmt.Sprintf("%s: %s (%s, the last %s)", r.From, r.Reason, plural(r.Count, "time"), ago(r.Last, s.Time)))
	}
	v.Blockers, v.Refusals = bounded(v.Blockers), bounded(v.Refusals)
	v.claims(s)
	return v
}

// bounded cuts a list off after maxLines and says how much it left out.
func bounded(list []string) []string {
	if n := len(list) - maxLines; n > 0 {
		return append(list[:maxLines], fmt.Sprintf("… and %s more.", count(n)))
	}
	return list
}

func (v *view) claims(s *replicator.Status) {
	names := names(s)
	v.Origins = plural(len(s.VersionVector), "origin")
	list := slices.Clone(s.VersionVector)
	rank := func(c replicator.VectorEntry) int { return cmp.Compare(names[c.Origin], "") }
	slices.SortStableFunc(list, func(a, b replicator.VectorEntry) int { return rank(b) - rank(a) })
	if n := len(list) - maxClaims; n > 0 {
		list, v.MoreClaims = list[:maxClaims], fmt.Sprintf("… and %s more.", count(n))
	}
	for _, c := range list {
		v.Claims = append(v.Claims, claim{c.Origin.String(), cmp.Or(names[c.Origin], "–"), count(c.Seq), count(c.Durable)})
	}
}

// rate formats changes per second.
func rate(perSecond float64) string {
	if perSecond < 10 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return count(int64(perSecond + 0.5))
}

func tiles(s *replicator.Status) []tile {
	conflicts, repaired, unsaved, between := "", "", "all is on this disk", "shorter while much changes"
	if s.Live > 0 {
		between = "live sessions push changes"
	}
	if s.Conflicts > 0 {
		conflicts = "busy"
	}
	keys := "with a value"
	if s.Counting {
		keys = "counted so far"
	}
	if s.Mismatches > 0 {
		repaired = "bad"
	}
	if s.NotDurable > 0 {
		unsaved = "a power failure could take them"
	}
	delay, most := "–", "nothing has come yet"
	if d := s.Delay(); d.Count > 0 {
		delay, most = span(d.Quantile(0.5)), "99 % within "+span(d.Quantile(0.99))
	}
	return []tile{
		{"", "Keys", count(s.Keys), keys},
		{conflicts, "Open conflicts", count(s.Conflicts), "keys"},
		{"", "Not on disk yet", count(s.NotDurable), unsaved},
		{"", "Tombstones", count(s.Tombstones), "kept until all have seen them"},
		{"", "Replication delay", delay, most},
		{"", "Live sessions", count(s.Live), pushes(s.Pushes) + " sent"},
		{"", "Between rounds", span(s.Interval), between},
		{"", "Sessions", count(s.Sessions), "since it was opened"},
		{"", "Pulled", count(s.Pulled), "versions, " + count(s.Served) + " served"},
		{"", "Came twice", percent(s.Duplicates, s.Duplicates+s.Pulled), plural(s.Duplicates, "pushed version")},
		{"", "Traffic", size(s.BytesIn + s.BytesOut), size(s.BytesIn) + " in, " + size(s.BytesOut) + " out"},
		{repaired, "Repaired", count(s.Mismatches), "versions that came back"},
	}
}

func pushes(n int64) string {
	if n == 1 {
		return "1 push"
	}
	return count(n) + " pushes"
}

// percent formats a share.
func percent(n, of int64) string {
	if n == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(of))
}

func newWork(p replicator.Progress) work {
	texts := map[replicator.Work]string{
		replicator.WorkAdopt: "Logging what was written past the wrapper", replicator.WorkVerify: "Verifying the store",
		replicator.WorkCount: "Counting what there is after a crash", replicator.WorkSweep: "Sweeping the log after a crash",
		replicator.WorkPull: "Pulling from " + p.Peer, replicator.WorkRepair: "Repairing with " + p.Peer,
	}
	w := work{Text: cmp.Or(texts[p.Work], string(p.Work)), Value: min(p.Keys, p.Total), Max: p.Total}
	done := []string{count(p.Keys)}
	if p.Total > 0 {
		done[0] += " of " + count(p.Total)
	}
	done = append(done, size(p.Bytes))
	if p.Remaining > 0 {
		done = append(done, "about "+span(p.Remaining)+" left")
	}
	w.Note = strings.Join(done, ", ")
	return w
}

// spark is a graph of changes per second.
type spark struct{ Line, Area, Label, Caption string }

// newSpark draws counts into a box of 240 by 48.
func newSpark(counts []int64) spark {
	var sum, most int64
	for _, n := range counts {
		sum, most = sum+n, max(most, n)
	}
	var path strings.Builder
	for i, n := range counts {
		x := 240 * float64(i) / float64(max(len(counts)-1, 1))
		y := 46 - 43*float64(n)/float64(max(most, 1))
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], x, y)
	}
	s := spark{
		Line:    path.String(),
		Label:   fmt.Sprintf("%s in the last %d seconds, at most %s in one", plural(sum, "change"), len(counts), count(most)),
		Caption: fmt.Sprintf("%s in the last minute, at most %s in a second", count(sum), count(most)),
	}
	if s.Line != "" {
		s.Area = s.Line + "L240 48L0 48Z"
	}
	return s
}

// conflictView is a key in conflict in words.
type conflictView struct {
	Key      string
	Versions []versionView
	More     string
	Merged   *merged
}

type merged struct{ By, Value, Note string }

type versionView struct {
	By, When, Clock, Value, Note string
	Deleted, Winner              bool
}

func newConflict(c *Conflict, now time.Time) conflictView {
	v := conflictView{Key: keyText(c.Key)}
	won := false
	for _, x := range c.Versions {
		y := versionView{
			By: cmp.Or(x.Replica, "origin "+x.Origin.Short()), When: ago(x.Time, now), Clock: count(x.Clock),
			Deleted: x.Deleted, Winner: x.Winner,
		}
		y.Value, y.Note = valueText(&x.Value)
		v.Versions = append(v.Versions, y)
		won = won || x.Winner
	}
	if c.MoreVersions > 0 {
		v.More = fmt.Sprintf("… and %s more.", plural(c.MoreVersions, "version"))
	}
	if !won {
		v.Merged = &merged{By: "merged by the resolver"}
		if c.MoreVersions > 0 {
			v.Merged.By = "one that is not listed, or merged by the resolver"
		}
		v.Merged.Value, v.Merged.Note = valueText(&c.Resolved)
		if c.Resolved.Deleted {
			v.Merged.Note = "deleted"
		}
	}
	return v
}

const (
	shownText = 1000 // characters of a text
	shownDump = 128  // bytes of other values
)

// valueText returns a value as text, and a note if that is not the whole of it.
func valueText(v *Value) (value, note string) {
	switch {
	case v.Deleted:
		return "", ""
	case v.Size == 0:
		return "", "empty"
	case v.Text == "":
		b := v.Value[:min(len(v.Value), shownDump)]
		note = plural(v.Size, "byte") + ", not text"
		if len(b) < v.Size {
			note = fmt.Sprintf("the first %d of %s, not text", len(b), plural(v.Size, "byte"))
		}
		return dump(b), note
	}
	t := v.Text
	if runes := []rune(t); len(runes) > shownText {
		t = string(runes[:shownText])
	}
	if len(t) < v.Size {
		note = fmt.Sprintf("the beginning of %s", plural(v.Size, "byte"))
		t += "…"
	}
	return t, note
}
