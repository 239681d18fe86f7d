package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// odd are keys and values that something on the way might spoil.
var odd = []string{
	"", " ", "a", " a", "a ", "a b", `"`, `"a"`, `a"b`, `\`, `\n`, "\n", "\t", "\x00", "\xff", "\xff\xfe\x00", "é", "日本", "\u2028", "\ufeff",
	"..", ".", "/", "//", "a//b", "a/../b", "/a", "a/", "%", "%2f", "%zz", "?", "a?b=c", "#", "&", "+", ";", "=", "<&>", "\x1b[2J", strings.Repeat("x", 300),
}

func TestWhatAnEncodingShowsItTakes(t *testing.T) {
	for e := auto; e <= raw; e++ {
		for _, s := range odd {
			shown := e.show([]byte(s))
			got, err := e.parse(shown)
			require.NoError(t, err, "%v %q", &e, s)
			require.Equal(t, s, string(got), "%v shows %s", &e, shown)
			if e != raw {
				require.NotContains(t, shown, "\n")
				require.False(t, strings.ContainsFunc(shown, unicode.IsControl), "%q", shown)
			}
		}
	}
}

func TestPrintableTextIsShownAsItIs(t *testing.T) {
	e := auto
	require.Equal(t, "files/a b.txt", e.show([]byte("files/a b.txt")))
	require.Equal(t, `"\xff\x00"`, e.show([]byte("\xff\x00")))
	got, err := (new(encoding)).parse(`"\xff\x00"`)
	require.NoError(t, err)
	require.Equal(t, "\xff\x00", string(got))
	e = quoted
	got, err = e.parse(`\xff`) // the marks may be left out
	require.NoError(t, err)
	require.Equal(t, "\xff", string(got))
}

func TestBytesSurviveJSON(t *testing.T) {
	for _, s := range odd {
		b, err := json.Marshal(octets(s))
		require.NoError(t, err)
		var back octets
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, s, string(back))
		require.NotNil(t, back)
	}
	b, err := json.Marshal(octets("text"))
	require.NoError(t, err)
	require.Equal(t, `"text"`, string(b))
	b, err = json.Marshal(octets("\xff"))
	require.NoError(t, err)
	require.Equal(t, `{"base64":"/w=="}`, string(b))
}
