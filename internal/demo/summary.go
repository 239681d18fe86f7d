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

	c.serverTable(reports)
	c.conflictLines()
	c.screen.line("\n%s agree: %s values compared byte for byte, every one is what it must be.",
		plural(len(c.running), "server"), count(c.compared))
	return nil
}

// serverTable says what each server did and holds.
func (c *cluster) serverTable(reports []report) {
	c.screen.heading("The servers")
	w := tabwriter.NewWriter(c.screen.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tkeys\twritten here\tpulled\tserved\tin conflict\tresolved\tstill open\tdigest\t")
	for _, r := range reports {
		digest := r.Digest[:8] + "…"
		open := r.Conflicts
		keys := r.Keys
		note := ""
		if before, ok := c.final[r.Name]; ok {
			// The process that was killed did most of this server's work and saw
			// all conflicts arise; what the new one found at its start is the same.
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

// conflictLines says what became of the conflicts.
func (c *cluster) conflictLines() {
	settled := len(c.edited) / 2
	open := len(c.expect.open)
	c.screen.line("\n%s arose, %s kept in each. The resolver showed the signatures of all\nservers in every one; %s ended by a write, %s with the directory, %s still open.",
		plural(len(c.edited), "conflict"), plural(len(c.running), "version"),
		count(settled), count(len(c.edited)-settled-open), count(open))
}

// seriesKey is the key of the i-th entry of a series.
func seriesKey(prefix string, i int) string { return fmt.Sprintf("%s%08d", prefix, i) }

// seriesValue is what belongs under a key of a series: about 1 KiB.
func seriesValue(key string) []byte {
	var text []byte
	for len(text) < 1000 {
		text = append(text, "the value of "+key+"\n"...)
	}
	return text
}
