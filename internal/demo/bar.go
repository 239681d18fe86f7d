package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// screen writes for people. On a terminal bars move; anywhere else a bar is a plain line
// now and then.
type screen struct {
	out      io.Writer
	terminal bool
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return s
}

func (s *screen) line(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// heading starts a phase.
func (s *screen) heading(title string) {
	if s.terminal {
		title = "\x1b[1m" + title + "\x1b[0m"
	}
	s.line("\n%s", title)
}

// bar shows the progress of one task. It is used from one goroutine.
type bar struct {
	screen *screen
	label  string
	total  int
	drawn  time.Time
}

const (
	barWidth     = 30
	redrawEvery  = 50 * time.Millisecond
	plainEvery   = 5 * time.Second
	labelColumns = 10
)

func (s *screen) bar(label string, total int) *bar {
	return &bar{screen: s, label: label, total: total, drawn: time.Now()}
}

// set moves the bar to n of total, with a note behind it.
func (b *bar) set(n int, note string) {
	every := plainEvery
	if b.screen.terminal {
		every = redrawEvery
	}
	if time.Since(b.drawn) < every {
		return
	}
	b.draw(n, note)
}

// end draws the bar for the last time and leaves it there.
func (b *bar) end(n int, note string) {
	b.draw(n, note)
	if b.screen.terminal {
		fmt.Fprintln(b.screen.out)
	}
}

func (b *bar) draw(n int, note string) {
	b.drawn = time.Now()
	share := 1.0
	if b.total > 0 {
		share = min(max(float64(n)/float64(b.total), 0), 1)
	}
	text := fmt.Sprintf("%3.0f %%  %s", share*100, note)
	if !b.screen.terminal {
		b.screen.line("  %-*s %s", labelColumns, b.label, text)
		return
	}
	full := int(share * barWidth)
	fmt.Fprintf(b.screen.out, "\r\x1b[2K  %-*s %s%s %s", labelColumns, b.label,
		strings.Repeat("█", full), strings.Repeat("░", barWidth-full), text)
}

// count formats a number for people: 11,478.
func count[N int | int64](n N) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// size formats a number of bytes in the unit that suits it.
func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// plural returns "1 replica" and "3 replicas".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}

// took rounds a duration for reading.
func took(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
