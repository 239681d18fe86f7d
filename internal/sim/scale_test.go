package sim

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

var (
	scale    = flag.Bool("scale", false, "run TestScale, and other tests at the size that is promised")
	scaleDoc = flag.String("scale.doc", "", "write table and plot of TestScale into this directory")
)

// spread measures how long a write takes to reach all replicas.
func (w *scaleWorld) spread(key string) (took []time.Duration, rounds int) {
	for _, x := range w.nodes {
		x.rounds = 0
	}
	wr := w.nodes[w.rand.IntN(len(w.nodes))].put(key, "v")
	w.runUntil(time.Minute, "a write spreads", func() bool { return len(wr.took) == len(w.nodes)-1 })
	for _, x := range w.nodes {
		rounds = max(rounds, x.rounds)
	}
	return wr.took, rounds
}

// scaleLoad is what some time of writes costs.
type scaleLoad struct {
	bytes         float64 // that a replica sends in a second
	copies        float64 // of a version that a replica is sent
	p50, p99, all time.Duration
	sessions      int
}

// measure lets writes happen, see load, and measures what that takes.
func (w *scaleWorld) measure(span time.Duration, perSecond int, writer func() *scaleNode) (l scaleLoad) {
	for _, x := range w.nodes {
		x.bytes, x.copies = 0, 0
	}
	w.sessions = 0
	writes := w.load(span, perSecond, writer)
	bytes, copies := int64(0), 0
	for _, x := range w.nodes {
		bytes += x.bytes
	}
	w.run(time.Second)
	var took []time.Duration
	for _, wr := range writes {
		require.Len(w.t, wr.took, w.living()-1)
		took = append(took, wr.took...)
	}
	for _, x := range w.nodes {
		copies += x.copies
	}
	n := float64(w.living())
	l.bytes, l.sessions = float64(bytes)/span.Seconds()/n, w.sessions
	if len(took) > 0 {
		slices.Sort(took)
		l.copies = float64(copies) / float64(len(took))
		l.p50, l.p99, l.all = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	}
	return l
}

func (w *scaleWorld) living() (n int) {
	for _, x := range w.nodes {
		n += int(store.Btoi(!x.dead))
	}
	return n
}

// anybody chooses any replica.
func (w *scaleWorld) anybody() *scaleNode { return w.nodes[w.rand.IntN(len(w.nodes))] }

// handshake measures the first and a later, idle session of two replicas that know
// of many origins.
func handshake(t testing.TB, origins int) (first, idle int64) {
	w := newScaleWorld(t, 2, 1)
	for range origins {
		o := w.nodes[0].r.Draw()
		for _, x := range w.nodes {
			x.r.Known.Raise(causal.Covered, causal.Dot{Origin: o, Seq: 1000})
			x.r.Known.Raise(causal.Durable, causal.Dot{Origin: o, Seq: 1000})
		}
	}
	meet := func() (bytes int64) {
		for _, x := range w.nodes {
			bytes -= x.bytes
		}
		w.nodes[0].dial(w.nodes[1])
		w.run(10 * time.Millisecond)
		for _, x := range w.nodes {
			bytes += x.bytes
		}
		return bytes
	}
	first = meet()
	meet()
	return first, meet()
}

// TestScale measures what docs/scale.md shows:
//
//	go test ./internal/sim -run TestScale$ -v -timeout 0 -scale -scale.doc ../../docs
func TestScale(t *testing.T) {
	if !*scale {
		t.Skip("only with -scale")
	}
	var doc strings.Builder
	var curves [][]time.Duration
	var loads strings.Builder
	sizes := []int{10, 100, 1000}
	doc.WriteString("| replicas | rounds | p50 | p99 | all | idle, B/s per replica |\n|---|---|---|---|---|---|\n")
	for _, n := range sizes {
		w := newScaleWorld(t, n, uint64(n))
		w.run(2 * time.Minute) // they get to know each other
		idle := w.measure(time.Minute, 0, nil)
		var all []time.Duration
		rounds := 0
		for i := range 5 {
			took, most := w.spread(fmt.Sprint("k", i))
			all, rounds = append(all, took...), max(rounds, most)
			w.run(2 * time.Minute)
		}
		slices.Sort(all)
		curves = append(curves, all)
		p99 := all[len(all)*99/100]
		fmt.Fprintf(&doc, "| %d | %d | %v | %v | %v | %.0f |\n", n, rounds, ms(all[len(all)/2]), ms(p99), ms(all[len(all)-1]), idle.bytes)
		require.Less(t, p99, 300*time.Millisecond)
		for _, writer := range []struct {
			name string
			of   func() *scaleNode
		}{{"any replica", w.anybody}, {"one replica", func() *scaleNode { return w.nodes[0] }}} {
			l := w.measure(20*time.Second, 10, writer.of)
			fmt.Fprintf(&loads, "| %d | %s | %v | %v | %v | %.2f | %.0f |\n", n, writer.name, ms(l.p50), ms(l.p99), ms(l.all), l.copies, l.bytes)
			require.Less(t, l.p99, 300*time.Millisecond)
			require.LessOrEqual(t, l.copies, 1.3)
			require.Less(t, l.bytes, 8000.0)
			w.run(10 * time.Second)
		}
		t.Logf("%d replicas done", n)
	}
	fmt.Fprintf(&doc, scaleLoads, loads.String())
	doc.WriteString("| 1,000 replicas | latest |\n|---|---|\n")
	for _, fault := range scaleFaults {
		w := linkedWorld(t, sizes[len(sizes)-1])
		fault.strike(w)
		fmt.Fprintf(&doc, "| %s | %v |\n", fault.name, ms(w.recover()))
	}
	doc.WriteString("\n| replicas that each write one key at the same moment | all have all | sessions |\n|---|---|---|\n")
	for _, n := range []int{50, 200} {
		took, sessions := burst(t, n)
		fmt.Fprintf(&doc, "| %d | %v | %d |\n", n, ms(took), sessions)
	}
	doc.WriteString("\n| origins | first session, both ways | idle session, both ways |\n|---|---|---|\n")
	for _, n := range []int{10, 1000, 10000} {
		first, idle := handshake(t, n)
		fmt.Fprintf(&doc, "| %d | %d B | %d B |\n", n, first, idle)
		require.LessOrEqual(t, idle, int64(400))
	}
	t.Logf("\n%s", doc.String())
	if *scaleDoc != "" {
		page := scaleIntro + doc.String() + "\n![Share of replicas that hold a write, over time](scale.svg)\n"
		require.NoError(t, os.WriteFile(*scaleDoc+"/scale.md", []byte(page), 0o644))
		require.NoError(t, os.WriteFile(*scaleDoc+"/scale.svg", []byte(scalePlot(sizes, curves)), 0o644))
	}
}

const scaleIntro = `# Scale

How one write spreads among many replicas, and what replicas cost each other. The simulation runs the real code of
replicas, sessions, links and rounds in virtual time with the default options. A dial and two round trips take 3 ms, a
frame over an open connection 1 ms, and no processor is ever busy. Bytes are those of frames.
` + "`go test ./internal/sim -run TestScale$ -v -timeout 0 -scale -scale.doc ../../docs`" + ` writes this page.

A replica writes after minutes of silence, in which all connections were closed. "Rounds" is the greatest number of
rounds that any replica began before it had the write; p50 and p99 are taken over all replicas and five writes.

`

const scaleLoads = `
Ten values of 200 bytes are written each second, for 20 s after silence. Copies are how often a replica is sent a version,
on average; the bytes are all that a replica sends.

| replicas | writer | p50 | p99 | all | copies | B/s per replica |
|---|---|---|---|---|---|---|
%s
Something happens while ten values are written each second. The latest of the writes of the next 15 s is at all replicas
that are left after:

`

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond)) }

// scalePlot draws the share of replicas that hold a write over time.
func scalePlot(sizes []int, curves [][]time.Duration) string {
	const width, height, left, top = 640, 320, 50, 20
	most := time.Duration(0)
	for _, c := range curves {
		most = max(most, c[len(c)-1])
	}
	most = most.Truncate(50*time.Millisecond) + 50*time.Millisecond
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`, left+width+20, top+height+50)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><path d="M%d %dV%dH%d" fill="none" stroke="#333"/>`, left, top, top+height, left+width)
	for i := range 5 {
		y, x := top+height-height*i/4, left+width*i/4
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%d %%</text><text x="%d" y="%d" text-anchor="middle">%s</text>`, left-6, y+4, 25*i, x, top+height+18, ms(most*time.Duration(i)/4))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">after the write (virtual time)</text>`, left+width/2, top+height+40)
	colours := []string{"#1b7837", "#2166ac", "#b2182b"}
	for i, c := range curves {
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colours[i])
		for j := 0; j < len(c); j += max(1, len(c)/200) {
			fmt.Fprintf(&b, "%.1f,%.1f ", left+float64(width)*float64(c[j])/float64(most), top+height-float64(height)*float64(j+1)/float64(len(c)))
		}
		fmt.Fprintf(&b, `"/><text x="%d" y="%d" fill="%s">%d replicas</text>`, left+width-90, top+height-20-18*i, colours[i], sizes[i])
	}
	b.WriteString("</svg>\n")
	return b.String()
}
