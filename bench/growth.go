package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// course is the table of scenarios that go through the same steps, each with ten times as many keys as the
// one before.
func (rs *results) course(list []scenario) string {
	columns := []string{"", "keys", "time", "for a key", "×", "processor time for a key", "×", "raw", "×", "memory at most", "files"}
	var b strings.Builder
	fmt.Fprintf(&b, "\n### %s\n\nEach × is to a tenth of the keys.\n\n| %s |\n|%s\n", list[0].title, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	found := false
	for _, st := range list[0].steps {
		for _, s := range list {
			figureOf := func(unit, system string, keys int) (float64, bool) {
				value, ok := spreadOf(rs.figures[figureKey{lifeName(st.name, keys), unit, system}])
				return value.median, ok
			}
			cell := func(unit, system string) string {
				value, ok := figureOf(unit, system, s.keys)
				if found = found || ok; !ok {
					return ""
				}
				return figure(value, unit)
			}
			times := func(unit, system string) string {
				most, ok := figureOf(unit, system, s.keys)
				least, ok2 := figureOf(unit, system, s.keys/10)
				if !ok || !ok2 || least == 0 {
					return ""
				}
				return fmt.Sprintf("%.2f", most/least)
			}
			cells := []string{
				st.title, thousands(s.keys), cell("sec", replicated), cell("sec/op", replicated), times("sec/op", replicated),
				cell(cpuUnit, replicated), times(cpuUnit, replicated), cell(cpuUnit, raw), times(cpuUnit, raw), cell("peak-B", replicated), cell("disk-B", replicated),
			}
			if slices.ContainsFunc(cells[2:], func(c string) bool { return c != "" }) {
				fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
			}
		}
	}
	if !found {
		return ""
	}
	return b.String()
}

// curve is a line of a chart, from left to right.
type curve struct {
	label, colour string
	dashed        bool
	points        []point
}

type point struct{ x, y float64 }

// growth draws the processor time of a key against how many there are: its ratio to the raw handle, and that of
// joins.
func (rs *results) growth() string {
	colours := []string{"#1b7837", "#2166ac", "#b2182b", "#762a83"}
	var ratios, joins []curve
	for i, do := range []string{"batch", "put", "overwrite", "get"} {
		label := []string{"batches of 1,000 new keys", "Put of new keys", "overwrites, uniform", "Get, uniform"}[i]
		ratios = append(ratios, curve{label, colours[i], false, rs.perKey("Size/do="+do+"/value=100/keys=%d"+suited.suffix(), replicated, func(_, ratio spread) float64 { return ratio.median })})
	}
	for i, store := range []storeOptions{defaults, suited} {
		label := []string{", goleveldb's options", ", StoreOptions"}[i]
		for _, system := range []string{replicated, raw} {
			what := map[string]string{replicated: "both replicas", raw: "raw: batches in key order"}[system]
			joins = append(joins, curve{what + label, colours[i], system == raw, rs.perKey("Join/keys=%d"+store.suffix(), system, func(value, _ spread) float64 { return value.median * 1e6 })})
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n"+`<rect width="100%%" height="100%%" fill="#fff"/>`+"\n", 2*chartWidth, chartHeight)
	b.WriteString(chart(0, "processor time, × the raw handle, StoreOptions", ratios))
	b.WriteString(chart(chartWidth, "join: processor time for a key, µs", joins))
	b.WriteString("</svg>\n")
	return b.String()
}

// perKey returns a point for each number of keys that was measured.
func (rs *results) perKey(format, system string, pick func(value, ratio spread) float64) (ps []point) {
	for _, n := range []int{200_000, 1_000_000, 2_000_000, 5_000_000, 20_000_000} {
		value, ratio, ok, _ := rs.of(row{name: fmt.Sprintf(format, n), unit: cpuUnit}, system)
		if y := pick(value, ratio); ok && y > 0 {
			ps = append(ps, point{float64(n), y})
		}
	}
	return ps
}

const chartWidth, chartHeight = 400, 330

// chart draws curves as a part of an SVG, over a logarithmic axis of keys. Those without points are left out.
func chart(at int, title string, curves []curve) string {
	const left, right, top, bottom = 40, 20, 34, 230
	curves = slices.DeleteFunc(slices.Clone(curves), func(c curve) bool { return len(c.points) == 0 })
	most := 0.0
	var xs []float64
	for _, c := range curves {
		for _, p := range c.points {
			most, xs = max(most, p.y), append(xs, p.x)
		}
	}
	most = cmp.Or(most, 1) * 1.05
	slices.Sort(xs)
	xs = slices.Compact(xs)
	x := func(v float64) float64 {
		if len(xs) < 2 {
			return (left + chartWidth - right) / 2
		}
		return left + 10 + (chartWidth-left-right-20)*math.Log(v/xs[0])/math.Log(xs[len(xs)-1]/xs[0])
	}
	y := func(v float64) float64 { return bottom - (bottom-top)*v/most }
	var b strings.Builder
	fmt.Fprintf(&b, `<g transform="translate(%d)"><text x="8" y="18" font-size="13">%s</text>`+"\n", at, title)
	for v, step := 0.0, tick(most); v <= most; v += step {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.3g</text>`+"\n", left, y(v), chartWidth-right, left-5, y(v)+4, v)
	}
	for _, v := range xs {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(v), top, bottom, x(v), bottom+14, strings.TrimSpace(si(v)))
	}
	for i, c := range curves {
		style := `fill="none" stroke="` + c.colour + `" stroke-width="2"`
		if c.dashed {
			style += ` stroke-dasharray="5 3"`
		}
		var line []string
		for _, p := range c.points {
			line = append(line, fmt.Sprintf("%.1f,%.1f", x(p.x), y(p.y)))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p.x), y(p.y), c.colour)
		}
		legend := bottom + 36 + 16*i
		fmt.Fprintf(&b, `<polyline points="%s" %s/><path d="M%d %dh24" %s/><text x="%d" y="%d">%s: %.3g to %.3g</text>`+"\n",
			strings.Join(line, " "), style, left, legend-4, style, left+30, legend, c.label, c.points[0].y, c.points[len(c.points)-1].y)
	}
	b.WriteString("</g>\n")
	return b.String()
}

// tick returns a round step that divides what is drawn into four to eight or so.
func tick(most float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for most/step < 4 {
		step /= 2
	}
	return step
}
