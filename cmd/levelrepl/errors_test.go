package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
)

// errorStatuses are the statuses of all errors that requests can end with, and of some that they cannot.
var errorStatuses = map[string]struct {
	err    error
	status int
}{
	"ErrReservedKey":     {replicator.ErrReservedKey, 400},
	"ErrLocalKey":        {replicator.ErrLocalKey, 400},
	"ErrToken":           {replicator.ErrToken, 400},
	"ErrCursor":          {replicator.ErrCursor, 400},
	"no tag":             {errNoTag, 400},
	"ErrFollower":        {replicator.ErrFollower, 403},
	"read-only":          {leveldb.ErrReadOnly, 403},
	"no such key":        {leveldb.ErrNotFound, 404},
	"no such key to get": {&absentError{}, 404},
	"too slow":           {errSlow, 408},
	"no conflict":        {errNoConflict, 409},
	"no version":         {errNoVersion, 409},
	"ErrTokenLost":       {replicator.ErrTokenLost, 410},
	"ErrChanged":         {replicator.ErrChanged, 412},
	"ChangedError":       {&replicator.ChangedError{}, 412},
	"another tag":        {&changedError{}, 412},
	"ErrTooLarge":        {replicator.ErrTooLarge, 413},
	"too large a body":   {&http.MaxBytesError{}, 413},
	"ErrFailed":          {replicator.ErrFailed, 503},
	"ErrBehind":          {replicator.ErrBehind, 503},
	"closed":             {leveldb.ErrClosed, 503},
	"no handles":         {syscall.EMFILE, 503},
	"none in the system": {syscall.ENFILE, 503},
	"in transit":         {errBusy, 503},
	"stopped":            {context.Canceled, 503},
	"NotReplicatedError": {&replicator.NotReplicatedError{Err: context.DeadlineExceeded}, 504},
	"late":               {context.DeadlineExceeded, 504},

	"ErrCorrupted": {replicator.ErrCorrupted, 500},
	"a disk":       {syscall.EIO, 500},
	"anything":     {errors.New("anything"), 500},

	// No request is about a session with a peer, or watches.
	"ErrMissed":    {replicator.ErrMissed, 500},
	"ErrClockSkew": {replicator.ErrClockSkew, 500},
	"PeerError":    {&replicator.PeerError{Err: syscall.ECONNREFUSED}, 500},
	"RefusedError": {&replicator.RefusedError{}, 500},
}

func TestStatusOfEachError(t *testing.T) {
	for name, c := range errorStatuses {
		require.Equal(t, c.status, statusOf(c.err), name)
		require.Equal(t, c.status, statusOf(fmt.Errorf("of some key: %w", c.err)), name)
		require.Equal(t, c.status, statusOf(errors.Join(c.err, nil)), name)
	}
	// A store that fails says why.
	require.Equal(t, 503, statusOf(fmt.Errorf("%w: %w", replicator.ErrFailed, syscall.ENOSPC)))
}

// Whoever adds an error to the library decides which status it has.
func TestEachErrorOfTheLibraryHasAStatus(t *testing.T) {
	sources, err := filepath.Glob(filepath.Join("..", "..", "*.go"))
	require.NoError(t, err)
	found := 0
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range file.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range decl.Specs {
				var name string
				switch s := spec.(type) {
				case *ast.ValueSpec:
					name = s.Names[0].Name
				case *ast.TypeSpec:
					name = s.Name.Name
				}
				if ast.IsExported(name) && (strings.HasPrefix(name, "Err") || strings.HasSuffix(name, "Error")) {
					found++
					require.Contains(t, errorStatuses, name)
				}
			}
		}
	}
	require.Greater(t, found, 15)
}

func TestConditionsOnALocalKeyAreTheMistakeOfWhoeverMakesThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	a := serve(t, dir, "--local", "private/")
	must(t, "put", "--addr", a.http, "private/there", "v")
	for _, key := range []string{"private/there", "private/absent"} {
		at := "http://" + a.http + "/kv/" + key
		for _, c := range [][2]string{{"If-None-Match", "*"}, {"If-None-Match", `"x"`}, {"If-Match", "*"}, {"If-Match", `"x"`}} {
			for _, method := range []string{"PUT", "DELETE"} {
				r := ask(t, method, at, "w", c[0], c[1])
				require.Equal(t, 400, r.StatusCode, "%s %s with %s: %s", method, key, c[0], c[1])
				require.Contains(t, bodyOf(t, r), errNoTag.Error())
			}
		}
		require.Equal(t, 400, ask(t, "POST", "http://"+a.http+"/take/"+key+"?version=x", "", "If-Match", `"x"`).StatusCode)
	}
	there := "http://" + a.http + "/kv/private/there"
	require.Equal(t, 400, ask(t, "GET", there, "", "If-Match", "*").StatusCode)
	require.Equal(t, 200, ask(t, "GET", there, "", "If-None-Match", `"x"`).StatusCode)
	tried := func(at string) {
		for _, key := range []string{"private/there", "private/absent"} {
			for _, tag := range []string{noTag, "*", strings.Repeat("0", 32)} {
				mustFail(t, exitUsage, key+" was not written: "+errNoTag.Error()+"\n  leave out --if", "put", at, key, "w", "--if", tag)
				mustFail(t, exitUsage, errNoTag.Error(), "del", at, key, "--if", tag)
			}
		}
		require.Equal(t, "v", must(t, "get", at, "private/there"))
	}
	tried("--addr=" + a.http)
	require.Equal(t, exitOK, a.stop())
	tried("--dir=" + dir)
}

func TestHTTPRefusesTokensAndCursorsThatAreNone(t *testing.T) {
	base := "http://" + serve(t, filepath.Join(t.TempDir(), "a")).http
	r := ask(t, "GET", base+"/kv/k", "", tokenHeader, "none")
	require.Equal(t, 400, r.StatusCode)
	require.Contains(t, bodyOf(t, r), replicator.ErrToken.Error())
	r = ask(t, "GET", base+"/changes?since=none", "")
	require.Equal(t, 400, r.StatusCode)
	require.Contains(t, bodyOf(t, r), replicator.ErrCursor.Error())
}
