package demo

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"
)

// summary prints the tables and the closing sentence.
func (c *cluster) summary(ctx context.Context) error {
	reports, err := c.ask(ctx)
	if err != nil {
		return err
	}
	c.screen.heading("What was done")
	w := tabwriter.NewWriter(c.screen.out, 0, 0, 2, ' ', 0)
	for _, r := range c.rows {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", r.phase, took(r.took), r.what)
	}
	fmt.Fprintf(w, "  all\t%s\t\n", took(time.Since(c.started)))
	w.Flush()

	c.replicaTable(reports)
	c.conflictLines()
	c.screen.line("\n%s agree: %s values compared byte for byte, every one is what it must be.",
		plural(len(c.running), "replica"), count(c.compared))
	return nil
}

// replicaTable prints what each replica did and holds.
func (c *cluster) replicaTable(reports []report) {
	c.screen.heading("The replicas")
	w := tabwriter.NewWriter(c.screen.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tkeys\twritten here\tpulled\tserved\tin conflict\tresolved\tstill open\tdigest\t")
	for _, r := range reports {
		digest := r.Digest[:8] + "…"
		open := r.Conflicts
		keys := r.Keys
		note := ""
		if before, ok := c.final[r.Name]; ok {
			// The process that was killed did most of this replica's work and saw
			// all conflicts arise; the new one found them when it started.
			before.Written += r.Written
			before.Pulled += r.Pulled
			before.Served += r.Served
			r, note = before, " *"
		}
		fmt.Fprintf(w, "  %s%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Name, note, count(keys), count(r.Written), count(r.Pulled),
			count(r.Served), count(r.Arisen), count(r.Ended), count(open), digest)
	}
	w.Flush()
	c.screen.line("  * without what it wrote in the moments before it was killed")
}

// conflictLines prints what became of the conflicts.
func (c *cluster) conflictLines() {
	resolved := len(c.edited) / 2
	open := len(c.expect.open)
	c.screen.line("\n%s arose, %s kept in each. The resolver merged the signatures of all\nreplicas in every one; %s ended by a write, %s with the directory, %s still open.",
		plural(len(c.edited), "conflict"), plural(len(c.running), "version"),
		count(resolved), count(len(c.edited)-resolved-open), count(open))
}

// seriesKey returns the key of the i-th entry of a series.
func seriesKey(prefix string, i int) string { return fmt.Sprintf("%s%08d", prefix, i) }

// seriesValue returns the value of a key of a series, about 1 KiB.
func seriesValue(key string) []byte {
	var text []byte
	for len(text) < 1000 {
		text = append(text, "the value of "+key+"\n"...)
	}
	return text
}
