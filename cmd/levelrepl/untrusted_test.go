package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
)

// steering is a text that would clear a terminal, set its title, turn text around, and
// begin a line of its own.
const steering = "\x1b[2J\u009b2J\x1b]0;owned\a\x7f\u202e\u2028\U000e0001\r\nFORGED"

func requireHarmless(t *testing.T, text string, args ...string) {
	t.Helper()
	for line := range strings.Lines(text) {
		require.False(t, strings.HasPrefix(strings.TrimSpace(line), "FORGED"), "levelrepl %s\n%q", strings.Join(args, " "), text)
		line = strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", " ")
		require.False(t, strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }), "levelrepl %s\n%q", strings.Join(args, " "), line)
	}
}

// steer puts steering into every text there is in v, and an element into every list.
func steer(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(steering)
	case reflect.Int64:
		v.SetInt(7)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte(steering))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		steer(v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				steer(v.Field(i))
			}
		}
	}
}

// hostile is a replica that says everything so as to do harm.
func hostile(t *testing.T) string {
	t.Helper()
	answers := map[string]any{
		"/status": new(replicator.Status), "/verify": new(replicator.Report), "/repair": new(replicator.Report),
		"/kv": new(page), "/conflicts": new(page), "/versions/k": new([]version),
	}
	for _, v := range answers {
		steer(reflect.ValueOf(v).Elem())
	}
	for _, path := range []string{"/kv", "/conflicts"} {
		p := answers[path].(*page)
		p.Next = nil
		p.Entries[0].Versions = append(p.Entries[0].Versions, version{Value: octets("other" + steering)})
	}
	vs := answers["/versions/k"].(*[]version)
	*vs = append(*vs, version{Value: octets("other")})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusInternalServerError)
			v = map[string]string{"error": steering}
		}
		_ = json.NewEncoder(w).Encode(v)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestNothingThatAReplicaSaysSteersTheTerminal(t *testing.T) {
	at, dir := hostile(t), replicaDir(t)
	for _, line := range []string{
		"status AT", "status AT --check", "status AT --json", "status AT AT", "status AT AT --check --json", "log AT", "log AT -n 5", "log AT --json -n 5",
		"verify AT", "verify AT --json", "repair AT", "repair AT --json", "conflicts --addr AT", "conflicts --addr AT --json", "conflicts --addr AT --check",
		"scan --addr AT", "scan --addr AT -k", "scan --addr AT --json", "get k --addr AT", "get k --addr AT --json", "put k v --addr AT", "del k --addr AT",
		"resolve k --take 1 --addr AT", "resolve k --take 9 --addr AT", "resolve k --delete --addr AT", "compare AT AT", "compare AT DIR", "compare AT DIR --json",
		"get k --dir " + strings.ReplaceAll(steering, "\n", "\\n"),
	} {
		args := strings.Split(strings.NewReplacer("AT", at, "DIR", dir).Replace(line), " ")
		_, out, errOut := cli(args...)
		require.NotEmpty(t, out+errOut, line)
		requireHarmless(t, out, args...)
		requireHarmless(t, errOut, args...)
	}
	_, out, _ := cli("status", at)
	require.Contains(t, out, `\x1b[2J\u009b2J`, "it is shown all the same")
}

func TestAnswerThatIsNoHTTPSteersNothing(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			io.WriteString(c, "HTTP/1.1 500 "+strings.ReplaceAll(steering, "\n", "")+"\r\n\x1b[2J\u009b\r\n\r\n")
			c.Close()
		}
	}))
	defer s.Close()
	_, out, errOut := cli("get", "k", "--addr", s.URL)
	requireHarmless(t, out+errOut)
	require.Contains(t, errOut, "levelrepl: ")
}

func TestLogOfAReplicaIsHarmlessInBothForms(t *testing.T) {
	for _, form := range []string{"--log-json", "--log-json=false"} {
		var log bytes.Buffer
		s := &serving{app: &app{err: &log}}
		c := &cobra.Command{}
		s.flags(c)
		require.NoError(t, c.ParseFlags([]string{form}))
		o, err := s.options()
		require.NoError(t, err)
		o.Logger.Warn("message "+steering, "name", steering, "error", errors.New(steering), "any", []string{steering})
		o.Logger.LogAttrs(context.Background(), slog.LevelInfo, "m", slog.Group(steering, steering, 1))
		requireHarmless(t, log.String(), form)
		require.Equal(t, 2, strings.Count(log.String(), "\n"), form)
	}
}

func TestJSONHasOnlyWhatATerminalPrints(t *testing.T) {
	for _, s := range append([]string{steering, "\U0001f600 é"}, odd...) {
		for _, v := range []any{s, octets(s), map[string]string{s: s}, []string{s}} {
			var b bytes.Buffer
			require.NoError(t, (&app{out: &b}).printJSON(v))
			requireHarmless(t, b.String())
			back := reflect.New(reflect.TypeOf(v))
			require.NoError(t, json.Unmarshal(b.Bytes(), back.Interface()))
			plain, err := json.Marshal(v)
			require.NoError(t, err)
			want := reflect.New(reflect.TypeOf(v))
			require.NoError(t, json.Unmarshal(plain, want.Interface()))
			require.Equal(t, want.Interface(), back.Interface())
		}
	}
	require.JSONEq(t, `"\u009b\udb40\udc01"`, string(safeJSON([]byte("\"\u009b\U000e0001\""))))
}
