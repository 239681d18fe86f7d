package statuspage

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// text returns bytes as text if all of it can be printed, else "".
func text(b []byte) string {
	b = whole(b)
	if !utf8.Valid(b) {
		return ""
	}
	for _, r := range string(b) {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return ""
		}
	}
	return string(b)
}

// whole drops a rune at the end that was cut in two.
func whole(b []byte) []byte {
	for i := 1; i <= min(len(b), utf8.UTFMax-1); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) && len(b) == maxText {
				return b[:len(b)-i]
			}
			break
		}
	}
	return b
}

// keyText returns a key as text, quoted as in Go if it cannot be printed or has spaces at
// its ends, which nobody would see.
func keyText(b []byte) string {
	q := strconv.Quote(string(b))
	if t := text(b); t != "" && !strings.ContainsAny(t, "\n\t") && strings.TrimSpace(t) == t {
		return t
	}
	return q
}

// dump returns bytes that are not text in hexadecimal.
func dump(b []byte) string { return fmt.Sprintf("% x", b) }

// count formats a number for people: 11,478.
func count[N int | int64 | uint64](n N) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// plural returns "1 replica" and "3 replicas".
func plural[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}

// size formats a number of bytes in the unit that suits it.
func size(n int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	if n < 1<<10 {
		return plural(n, "byte")
	}
	f := float64(n) / (1 << 10)
	for len(units) > 1 && f >= 1<<10 {
		f, units = f/(1<<10), units[1:]
	}
	return fmt.Sprintf("%.1f %s", f, units[0])
}

// span formats a duration in its greatest unit: 450 ms, 12 s, 5 min, 3 h, 2 days.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", max(d.Milliseconds(), 0))
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// ago formats how long before now a moment was.
func ago(t, now time.Time) string {
	switch d := now.Sub(t); {
	case t.IsZero():
		return "never"
	case d < time.Second:
		return "just now"
	default:
		return span(d) + " ago"
	}
}
