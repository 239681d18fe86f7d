package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChangesGoOnFromACursor(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"))
	base := "http://" + n.http
	for _, k := range []string{"a", "b", "\xff"} {
		require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/"+strings.ReplaceAll(k, "\xff", "%ff"), "1").StatusCode)
	}
	lines := func(args ...string) (cs []change) {
		out := &strings.Builder{}
		require.Equal(t, exitOK, run(t.Context(), append([]string{"changes", "--addr", n.http}, args...), strings.NewReader(""), out, out), out.String())
		for d := json.NewDecoder(strings.NewReader(out.String())); d.More(); {
			var c change
			require.NoError(t, d.Decode(&c))
			cs = append(cs, c)
		}
		return cs
	}
	all := lines()
	require.True(t, all[0].Reset)
	require.Equal(t, "a", string(*all[1].Key))
	require.Equal(t, "\xff", string(*all[3].Key))
	cursor := all[len(all)-1].Cursor
	require.NotEmpty(t, cursor)
	require.Empty(t, lines("--since", cursor))
	require.Equal(t, http.StatusNoContent, ask(t, "DELETE", base+"/kv/a", "").StatusCode)
	require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/b2", "2").StatusCode)
	some := lines("--since", cursor, "--keys", "b")
	require.Equal(t, "b2", string(*some[0].Key))
	require.Nil(t, some[0].Value)
	require.Equal(t, exitUsage, run(t.Context(), []string{"changes", "--since", "none"}, strings.NewReader(""), &strings.Builder{}, &strings.Builder{}))
	require.Equal(t, http.StatusBadRequest, ask(t, "GET", base+"/changes?since=none", "").StatusCode)
	require.Equal(t, exitOK, n.stop())
	out := &strings.Builder{}
	require.Equal(t, exitOK, run(t.Context(), []string{"changes", "--dir", n.dir, "--since", cursor}, strings.NewReader(""), out, out), out.String())
	require.Contains(t, out.String(), `"key":"a","deleted":true`)
}

func TestChangesAreServedAsEvents(t *testing.T) {
	n := serve(t, filepath.Join(t.TempDir(), "a"))
	base := "http://" + n.http
	require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/before", "1").StatusCode)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := func(last string) *bufio.Scanner {
		req, err := http.NewRequestWithContext(ctx, "GET", base+"/changes?follow=1", nil)
		require.NoError(t, err)
		req.Header.Set("Accept", "text/event-stream")
		req.Header.Set("Last-Event-ID", last)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		t.Cleanup(func() { resp.Body.Close() })
		require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
		return bufio.NewScanner(resp.Body)
	}
	// next returns the next event, with the cursor that it has.
	next := func(s *bufio.Scanner) (c change, id string) {
		for s.Scan() {
			if text, ok := strings.CutPrefix(s.Text(), "id: "); ok {
				id = text
			}
			if text, ok := strings.CutPrefix(s.Text(), "data: "); ok {
				require.NoError(t, json.Unmarshal([]byte(text), &c))
				require.Equal(t, id, c.Cursor)
				return c, id
			}
		}
		t.Fatal("the events have ended", s.Err())
		return c, id
	}
	s := follow("")
	c, _ := next(s)
	require.True(t, c.Reset)
	c, _ = next(s)
	require.Equal(t, "before", string(*c.Key))
	require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/live", "2").StatusCode)
	c, id := next(s)
	for c.Key == nil {
		c, id = next(s)
	}
	require.Equal(t, "live", string(*c.Key))
	for id == "" {
		c, id = next(s)
	}
	require.Equal(t, http.StatusNoContent, ask(t, "PUT", base+"/kv/later", "3").StatusCode)
	c, _ = next(follow(id))
	require.Equal(t, "later", string(*c.Key))
	require.Equal(t, exitOK, n.stop(), "followers do not hold it up")
}
