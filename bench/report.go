package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// results are all figures of a file: by benchmark, unit and system, in the order of
// the rounds.
type results struct {
	figures map[figureKey][]float64
	machine map[string][]string // properties of the machine, each value once
}

type figureKey struct{ name, unit, system string }

var systemPart = regexp.MustCompile(`^(.*)/system=([a-z-]+?)(?:-\d+)?$`)

func readResults(file string) (*results, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rs := &results{figures: map[figureKey][]float64{}, machine: map[string][]string{}}
	rd := benchfmt.NewReader(f, file)
	for rd.Scan() {
		switch r := rd.Result().(type) {
		case *benchfmt.SyntaxError:
			return nil, r
		case *benchfmt.Result:
			if err := rs.add(r); err != nil {
				return nil, err
			}
		}
	}
	return rs, rd.Err()
}

func (rs *results) add(r *benchfmt.Result) error {
	m := systemPart.FindSubmatch(r.Name)
	if m == nil {
		return fmt.Errorf("result %q does not name its system", r.Name)
	}
	for _, v := range r.Values {
		k := figureKey{string(m[1]), v.Unit, string(m[2])}
		rs.figures[k] = append(rs.figures[k], v.Value)
	}
	for _, c := range r.Config {
		if said := string(c.Value); !slices.Contains(rs.machine[c.Key], said) {
			rs.machine[c.Key] = append(rs.machine[c.Key], said)
		}
	}
	return nil
}

// spread is the median of some figures and their extremes.
type spread struct{ median, least, most float64 }

func spreadOf(figures []float64) (s spread, ok bool) {
	if len(figures) == 0 {
		return s, false
	}
	sorted := slices.Sorted(slices.Values(figures))
	n := len(sorted)
	return spread{(sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]}, true
}

// of returns the figures of one system, and their ratio to the raw handle's of the same
// round.
func (rs *results) of(r row, system string) (value, ratio spread, hasValue, hasRatio bool) {
	own, bare := rs.figures[figureKey{r.name, r.unit, system}], rs.figures[figureKey{r.name, r.unit, raw}]
	value, hasValue = spreadOf(own)
	var ratios []float64
	for i := range min(len(own), len(bare)) {
		if bare[i] != 0 {
			ratios = append(ratios, own[i]/bare[i])
		}
	}
	ratio, hasRatio = spreadOf(ratios)
	return value, ratio, hasValue, hasRatio
}

// figure formats a value for people.
func figure(v float64, unit string) string {
	switch {
	case unit == "op/s":
		return si(v) + "/s"
	case strings.HasSuffix(unit, "B/s"):
		return si(v) + "B/s"
	case unit == "cpu-sec/s":
		return fmt.Sprintf("%.2f %%", 100*v)
	case strings.HasSuffix(unit, "sec") || strings.HasSuffix(unit, "sec/op"):
		return seconds(v)
	case unit == "B/key" || strings.HasSuffix(unit, "B/op"):
		return fmt.Sprintf("%.0f B", v)
	case unit == "sessions" || unit == "known":
		return fmt.Sprintf("%.0f", v)
	case strings.HasSuffix(unit, "B"):
		return si(v) + "B"
	}
	return fmt.Sprintf("%.2f", v)
}

func si(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3g M", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.3g k", v/1e3)
	}
	return fmt.Sprintf("%.0f ", v)
}

func seconds(v float64) string {
	switch {
	case v >= 1:
		return fmt.Sprintf("%.2f s", v)
	case v >= 1e-3:
		return fmt.Sprintf("%.3g ms", v*1e3)
	}
	return fmt.Sprintf("%.3g µs", v*1e6)
}

// between formats a median with its extremes, if they differ.
func between(s spread, unit string) string {
	if s.least == s.most {
		return figure(s.median, unit)
	}
	return fmt.Sprintf("%s (%s – %s)", figure(s.median, unit), figure(s.least, unit), figure(s.most, unit))
}

// section is the table of one scenario.
func (rs *results) section(s scenario) string {
	var b strings.Builder
	columns := []string{""}
	for _, system := range s.systems {
		columns = append(columns, system)
		if system == replicated && slices.Contains(s.systems, raw) {
			columns = append(columns, "× raw", "processor time × raw")
		}
	}
	columns = append(columns, "aim", "")
	fmt.Fprintf(&b, "\n### %s\n\n| %s |\n|%s\n", s.title, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	found := false
	for _, r := range s.rows {
		line, ok := rs.line(s, r)
		if found = found || ok; ok {
			b.WriteString(line)
		}
	}
	if !found {
		return ""
	}
	return b.String()
}

func (rs *results) line(s scenario, r row) (string, bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s |", r.title)
	found, met := false, ""
	for _, system := range s.systems {
		value, ratio, ok, compared := rs.of(r, system)
		found = found || ok
		if b.WriteByte(' '); ok {
			b.WriteString(between(value, r.unit))
		}
		b.WriteString(" |")
		if system != replicated {
			continue
		}
		if slices.Contains(s.systems, raw) {
			times := ""
			if compared {
				times = fmt.Sprintf("**%.2f** (%.2f – %.2f)", ratio.median, ratio.least, ratio.most)
			}
			fmt.Fprintf(&b, " %s | %s |", times, rs.processor(r))
		}
		if r.aim.kind != noAim && ok {
			met = "missed"
			if r.aim.met(ratio.median, value.median) {
				met = "met"
			}
		}
	}
	fmt.Fprintf(&b, " %s | %s |\n", r.aim.text(r.unit), met)
	return b.String(), found
}

// grid is the table of several scenarios that measure the same figures, which are its columns.
func (rs *results) grid(lines []scenario) string {
	var b strings.Builder
	columns := []string{"", "system"}
	for _, r := range lines[0].rows {
		columns = append(columns, r.title)
	}
	fmt.Fprintf(&b, "\n### %s\n\n| %s |\n|%s\n", lines[0].title, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	found := false
	for _, s := range lines {
		for _, system := range s.systems {
			if cells, ok := rs.cells(s, system); ok {
				found = true
				fmt.Fprintf(&b, "| %s | %s | %s |\n", s.line, system, cells)
			}
		}
	}
	if !found {
		return ""
	}
	return b.String()
}

func (rs *results) cells(s scenario, system string) (_ string, found bool) {
	var cells []string
	for _, r := range s.rows {
		cell := ""
		if value, _, ok, _ := rs.of(r, system); ok {
			found, cell = true, between(value, r.unit)
			if n := rs.figures[figureKey{r.name, unseenUnit, system}]; strings.HasPrefix(r.unit, "p") && len(n) > 0 {
				cell = "over " + cell // some had not arrived when the round ended
			}
		}
		cells = append(cells, cell)
	}
	return strings.Join(cells, " | "), found
}

// processor is the ratio of processor time, which other work on the machine disturbs
// less than the clock.
func (rs *results) processor(r row) string {
	if r.unit != "op/s" {
		return ""
	}
	r.unit = cpuUnit
	if _, ratio, _, ok := rs.of(r, replicated); ok {
		return fmt.Sprintf("%.2f", ratio.median)
	}
	return ""
}

// tables returns the text between the markers.
func (rs *results) tables() string {
	var b strings.Builder
	said := func(key string) string { return strings.Join(rs.machine[key], "; ") }
	fmt.Fprintf(&b, "Machine: %s, %s/%s, %s. Meanwhile: %s.\n", said("cpu"), said("goos"), said("goarch"), said("go"), said("note"))
	least, most := rs.rounds()
	fmt.Fprintf(&b, "Each figure is the median of %d to %d rounds, with the least and the greatest; a ratio is taken within a round.\n", least, most)
	all := scenarios()
	for i, s := range all {
		switch {
		case s.line == "" && s.steps == nil:
			b.WriteString(rs.section(s))
		case i == 0 || all[i-1].title != s.title:
			n := slices.IndexFunc(all[i:], func(o scenario) bool { return o.title != s.title })
			if n < 0 {
				n = len(all) - i
			}
			if s.steps != nil {
				b.WriteString(rs.course(all[i : i+n]))
			} else {
				b.WriteString(rs.grid(all[i : i+n]))
			}
		}
	}
	return b.String()
}

func (rs *results) rounds() (least, most int) {
	for _, figures := range rs.figures {
		if n := len(figures); least == 0 || n < least {
			least = n
		}
		most = max(most, len(figures))
	}
	return least, most
}

const (
	beginMark = "<!-- bench: begin -->"
	endMark   = "<!-- bench: end -->"
)

// writeDocs writes the tables in performance.md and the plots beside it.
func writeDocs(dir, file string) error {
	rs, err := readResults(file)
	if err != nil {
		return err
	}
	if len(rs.figures) == 0 {
		return fmt.Errorf("%s holds no results: measure first", file)
	}
	doc := filepath.Join(dir, "performance.md")
	text, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s needs a line %s and a line %s after it: what is between them is replaced", doc, beginMark, endMark)
	}
	made := before + beginMark + "\n" + rs.tables() + endMark + after
	errs := []error{os.WriteFile(doc, []byte(made), 0o644)}
	for name, svg := range rs.plots() {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(svg), 0o644))
	}
	return errors.Join(errs...)
}

// bars are the rows of a plot.
type bar struct {
	label        string
	value        spread
	aim          float64 // or 0
	colour, text string
}

// plots are pictures of the tables: how near to the raw handle each row comes, and
// the latencies.
func (rs *results) plots() map[string]string {
	var ratios, latencies []bar
	for _, s := range scenarios() {
		for _, r := range s.rows {
			value, ratio, ok, compared := rs.of(r, replicated)
			switch {
			case ok && r.unit == "op/s" && compared:
				ratios = append(ratios, ratioBar(s, r, ratio))
			case ok && strings.HasPrefix(r.name, "Latency/"):
				aimed := 0.0
				if r.aim.kind == mostOfUnits {
					aimed = r.aim.value * 1e3
				}
				ms := spread{value.median * 1e3, value.least * 1e3, value.most * 1e3}
				label := r.title
				if strings.HasSuffix(r.name, "net=tls") {
					label += ", Secret"
				}
				latencies = append(latencies, bar{label, ms, aimed, "#2166ac", fmt.Sprintf("%.2f ms", ms.median)})
			}
		}
	}
	return map[string]string{
		"performance-ratios.svg":  plot("throughput, × the raw handle (bar: median, line: all rounds, red: aim)", ratios),
		"performance-growth.svg":  rs.growth(),
		"performance-latency.svg": plot("from Put to visible on all, ms (bar: median, line: all rounds, red: aim)", latencies),
	}
}

func ratioBar(s scenario, r row, ratio spread) bar {
	aimed := 0.0
	if r.aim.kind == leastRatio {
		aimed = r.aim.value
	}
	return bar{s.name + ": " + shorten(r.title), ratio, aimed, "#1b7837", fmt.Sprintf("%.2f", ratio.median)}
}

func shorten(title string) string {
	head, _, _ := strings.Cut(title, ";")
	return head
}

// plot draws horizontal bars as SVG.
func plot(title string, bars []bar) string {
	const width, left, line, top = 420, 300, 20, 34
	most := 0.0
	for _, b := range bars {
		most = max(most, b.value.most, b.aim)
	}
	most = cmp.Or(most, 1)
	step := tick(most)
	x := func(v float64) float64 { return left + width*v/most }
	height := top + line*len(bars)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", left+width+60, height+24)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="8" y="18" font-size="13">%s</text>`+"\n", title)
	for v := 0.0; v <= most; v += step {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%.3g</text>`+"\n", x(v), top-4, height, x(v), height+14, v)
	}
	for i, r := range bars {
		y := top + line*i
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left-6, y+13, r.label, left, y+3, x(r.value.median)-left, line-6, r.colour)
		fmt.Fprintf(&b, `<path d="M%.1f %dH%.1f" stroke="#000"/><text x="%.1f" y="%d">%s</text>`, x(r.value.least), y+line/2, x(r.value.most), x(max(r.value.most, r.aim))+5, y+13, r.text)
		if r.aim > 0 {
			fmt.Fprintf(&b, `<path d="M%.1f %dv%d" stroke="#b2182b" stroke-width="2"/>`, x(r.aim), y+1, line-2)
		}
		b.WriteByte('\n')
	}
	b.WriteString("</svg>\n")
	return b.String()
}
