package replicator

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEveryIteratorIsAskedForItsError reads the source: a damaged table ends an
// iterator early and silently, so no function may report success after a loop
// without having asked the iterator for its error.
func TestEveryIteratorIsAskedForItsError(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	internal, err := filepath.Glob("internal/*/*.go")
	require.NoError(t, err)
	files = append(files, internal...)
	set, iterators := token.NewFileSet(), 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		require.NoError(t, err)
		found, faults := unaskedIterators(set, file)
		iterators += found
		require.Empty(t, faults)
	}
	require.Greater(t, iterators, 10, "the iterators are no longer recognized")
}

func TestForgottenIteratorErrorIsFound(t *testing.T) {
	for body, faults := range map[string]int{
		`for it.Next() { }; return it.Error()`:                                                  0,
		`for it.Next() { return it.Error() }; if err := it.Error(); err != nil { }; return nil`: 0,
		`for it.Next() { if bad { return errBad } }; return it.Error()`:                         0,
		`for it.Next() { }; return nil`:                                                         1,
		`for it.Next() { return nil }; return it.Error()`:                                       1,
		`if err := it.Error(); err != nil { return err }; for it.Next() { }; return nil`:        1,
		`for it.Next() { }`: 1,
		`for it.Next() { }; func() { _ = it.Error() }(); return nil`:                            1,
		`for ok := it.Last(); ok; ok = it.Prev() { if full { return nil } }; return it.Error()`: 1,
	} {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, "x.go", "package x\nfunc f() error { it := db.NewIterator(nil, nil); "+body+" }", 0)
		require.NoError(t, err, body)
		_, got := unaskedIterators(set, file)
		require.Len(t, got, faults, body)
	}
}

// unaskedIterators finds the iterators made in a file, and the places where a
// function says that all went well without knowing.
func unaskedIterators(set *token.FileSet, file *ast.File) (iterators int, faults []string) {
	eachFunction(file, func(body *ast.BlockStmt) {
		within(body, func(n ast.Node) {
			assign, ok := n.(*ast.AssignStmt)
			if !ok || len(assign.Rhs) != 1 || calls(assign.Rhs[0], "", "NewIterator") == token.NoPos {
				return
			}
			iterators++
			it := types.ExprString(assign.Lhs[0])
			for _, pos := range unasked(body, it) {
				faults = append(faults, fmt.Sprintf("%s: success is reported without asking %s.Error()", set.Position(pos), it))
			}
		})
	})
	return iterators, faults
}

// unasked are the ends of a function at which it says nil, or says nothing, though
// the iterator moved and was not asked for its error since.
func unasked(body *ast.BlockStmt, it string) (ends []token.Pos) {
	moved, asked := token.NoPos, token.NoPos
	returned := false
	within(body, func(n ast.Node) {
		switch n := n.(type) {
		case *ast.ForStmt:
			for _, part := range []ast.Node{n.Init, n.Cond, n.Post, n.Body} {
				if moves(part, it) {
					moved = n.Pos()
				}
			}
		case *ast.CallExpr:
			if pos := calls(n, it, "Error"); pos != token.NoPos {
				asked = pos
			}
			if moves(n, it) {
				moved = n.Pos()
			}
		case *ast.ReturnStmt:
			if returned = n.Pos() > moved; len(n.Results) == 0 {
				return
			}
			last := n.Results[len(n.Results)-1]
			if types.ExprString(last) == "nil" && moved != token.NoPos && asked < moved {
				ends = append(ends, n.Pos())
			}
		}
	})
	if !returned && asked < moved {
		ends = append(ends, body.Rbrace)
	}
	return ends
}

func moves(n ast.Node, it string) bool {
	for _, m := range []string{"Next", "Prev", "First", "Last", "Seek"} {
		if calls(n, it, m) != token.NoPos {
			return true
		}
	}
	return false
}

// calls finds a call of a method in an expression or a statement; of is the
// receiver, or empty for any.
func calls(n ast.Node, of, method string) (pos token.Pos) {
	if n == nil {
		return token.NoPos
	}
	ast.Inspect(n, func(n ast.Node) bool {
		if _, ok := n.(*ast.FuncLit); ok {
			return false
		}
		if call, ok := n.(*ast.CallExpr); ok {
			if s, ok := call.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == method && (of == "" || types.ExprString(s.X) == of) {
				pos = call.Pos()
			}
		}
		return true
	})
	return pos
}

// eachFunction calls f for the body of each function, also of those in others.
func eachFunction(file *ast.File, f func(body *ast.BlockStmt)) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Body != nil {
				f(n.Body)
			}
		case *ast.FuncLit:
			f(n.Body)
		}
		return true
	})
}

// within visits a function's own nodes in the order of the source, not those of
// functions in it.
func within(body *ast.BlockStmt, f func(ast.Node)) {
	ast.Inspect(body, func(n ast.Node) bool {
		if _, ok := n.(*ast.FuncLit); ok {
			return false
		}
		if n != nil {
			f(n)
		}
		return true
	})
}
