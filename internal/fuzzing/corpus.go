package fuzzing

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	mutations  = flag.Int("mutations", 0, "executions of each fuzz target on changed inputs of its corpus")
	corpusDir  = flag.String("mutations.corpus", "", "directory with a further corpus for each target, as go test -fuzz leaves it in its cache")
	mutateSeed = flag.Uint64("mutations.seed", 1, "where they begin")
)

// Corpus is what a fuzz target begins with. Under go test -fuzz inputs are sought by
// what they reach, a few thousand in a second. With -mutations they are changed at
// random, many times as fast.
type Corpus struct {
	F    *testing.F
	args [][]any
}

func (c *Corpus) Add(args ...any) {
	c.F.Add(args...)
	c.args = append(c.args, args)
}

func Run1[A any](c *Corpus, body func(t testing.TB, a A)) {
	c.mutate(func(t testing.TB, x []any) { body(t, x[0].(A)) })
	c.F.Fuzz(func(t *testing.T, a A) { body(t, a) })
}

func Run2[A, B any](c *Corpus, body func(t testing.TB, a A, b B)) {
	c.mutate(func(t testing.TB, x []any) { body(t, x[0].(A), x[1].(B)) })
	c.F.Fuzz(func(t *testing.T, a A, b B) { body(t, a, b) })
}

func Run3[A, B, C any](c *Corpus, body func(t testing.TB, a A, b B, x C)) {
	c.mutate(func(t testing.TB, x []any) { body(t, x[0].(A), x[1].(B), x[2].(C)) })
	c.F.Fuzz(func(t *testing.T, a A, b B, x C) { body(t, a, b, x) })
}

func (c *Corpus) mutate(body func(t testing.TB, args []any)) {
	if *mutations == 0 {
		return
	}
	if *corpusDir != "" {
		c.read(filepath.Join(*corpusDir, c.F.Name()))
	}
	seed, n := *mutateSeed, 0
	var args []any
	defer func() {
		if c.F.Failed() || n < *mutations {
			c.F.Logf("execution %d of seed %d: %q", n, seed, args)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 0))
	for ; n < *mutations; n++ {
		args = slices.Clone(c.args[r.IntN(len(c.args))])
		for i := range args {
			args[i] = c.mutated(r, args[i], i)
		}
		t := &execution{TB: c.F}
		body(t, args)
		t.end()
	}
	c.F.Logf("%d executions, seed %d, %d inputs to begin with", n, seed, len(c.args))
}

// execution is one of many: what it opened is closed at its end.
type execution struct {
	testing.TB
	cleanups []func()
}

func (x *execution) Cleanup(f func()) { x.cleanups = append(x.cleanups, f) }

func (x *execution) end() {
	for _, f := range slices.Backward(x.cleanups) {
		f()
	}
}

// mutated changes one argument, number i.
func (c *Corpus) mutated(r *rand.Rand, arg any, i int) any {
	switch x := arg.(type) {
	case bool:
		return r.IntN(2) == 0
	case byte:
		return byte(r.Uint32())
	case string:
		other := c.args[r.IntN(len(c.args))][i].(string)
		return string(changedBytes(r, []byte(x), []byte(other)))
	case []byte:
		return changedBytes(r, slices.Clone(x), c.args[r.IntN(len(c.args))][i].([]byte))
	}
	panic("a corpus of another type")
}

// changedBytes changes b in up to eight places; parts may come from another input.
func changedBytes(r *rand.Rand, b, other []byte) []byte {
	for range r.IntN(9) {
		at := r.IntN(len(b) + 1)
		n := min(r.IntN(16)+1, len(b)-at)
		switch r.IntN(8) {
		case 0: // a bit
			if at < len(b) {
				b[at] ^= 1 << r.IntN(8)
			}
		case 1: // a byte
			if at < len(b) {
				b[at] = byte(r.Uint32())
			}
		case 2: // an integer at a boundary
			v := uint64(1)<<r.IntN(64) - uint64(r.IntN(3))
			b = slices.Insert(b, at, binary.AppendUvarint(nil, v)...)
		case 3:
			b = slices.Delete(b, at, at+n)
		case 4:
			b = slices.Insert(b, at, slices.Clone(b[at:at+n])...)
		case 5:
			b = b[:at]
		case 6: // from another input
			if len(other) > 0 {
				from := r.IntN(len(other))
				part := other[from:min(len(other), from+r.IntN(64)+1)]
				b = slices.Replace(b, at, at+min(len(part)*r.IntN(2), len(b)-at), part...)
			}
		case 7:
			for i := at; i < at+n; i++ {
				b[i] = 0xff
			}
		}
	}
	return b[:min(len(b), 1<<16)]
}

// read adds the inputs that go test -fuzz has kept.
func (c *Corpus) read(dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(c.F, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(c.F, err)
		var args []any
		for line := range strings.Lines(string(text)) {
			kind, value, ok := strings.Cut(strings.TrimSpace(line), "(")
			if !ok {
				continue // the header
			}
			value = strings.TrimSuffix(value, ")")
			switch kind {
			case "bool":
				args = append(args, value == "true")
			case "byte", "uint8":
				s, err := strconv.Unquote(value)
				if err != nil {
					n, _ := strconv.Atoi(value)
					args = append(args, byte(n))
				} else {
					args = append(args, byte([]rune(s)[0]))
				}
			default:
				s, err := strconv.Unquote(value)
				require.NoError(c.F, err, "%s: %s", file, line)
				if kind == "string" {
					args = append(args, s)
				} else {
					args = append(args, []byte(s))
				}
			}
		}
		c.args = append(c.args, args)
	}
}
