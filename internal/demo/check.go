package demo

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
)

// expected is what every replica must hold. The parent works it out from its own
// requests, never from what a replica reports.
type expected struct {
	values map[string]content
	// unsure was not acknowledged when its replica was killed. It may be there or
	// not, but on all replicas alike.
	unsure map[string]content
	open   map[string]bool // keys in conflict
}

// content is a value: a file with the signatures of its editors, or a text.
type content struct {
	file    string
	editors []string
	text    []byte
}

func newExpected() *expected {
	return &expected{values: map[string]content{}, unsure: map[string]content{}, open: map[string]bool{}}
}

// bytes returns the value itself. It reads files each time: the page cache has them, and
// the parent stays small.
func (c content) bytes() ([]byte, error) {
	if c.file == "" {
		return c.text, nil
	}
	value, err := os.ReadFile(c.file)
	for _, e := range c.editors {
		value = sign(value, e)
	}
	return value, err
}

// difference is a key whose value is not what it must be.
type difference struct{ key, what string }

// inspection compares one replica with what is expected.
type inspection struct {
	replica *process
	expect  *expected
	seen    map[string]bool
	bytes   int64
	checked *atomic.Int64
	found   []difference
	failed  error
}

// inspect begins an inspection. The counter, if any, rises with each value.
func inspect(s *process, e *expected, checked *atomic.Int64) *inspection {
	if checked == nil {
		checked = new(atomic.Int64)
	}
	return &inspection{replica: s, expect: e, seen: map[string]bool{}, checked: checked}
}

// value checks one key of the replica.
func (i *inspection) value(key string, got []byte) {
	i.checked.Add(1)
	i.bytes += int64(len(got))
	if i.seen[key] {
		i.found = append(i.found, difference{key, "is listed twice"})
	}
	i.seen[key] = true
	c, ok := i.expect.values[key]
	if !ok {
		c, ok = i.expect.unsure[key]
	}
	if !ok {
		i.found = append(i.found, difference{key, "is there but must not be"})
		return
	}
	want, err := c.bytes()
	if err != nil {
		i.failed = err
		return
	}
	if !bytes.Equal(got, want) {
		i.found = append(i.found, difference{key, differ(got, want)})
	}
}

// differ describes where two values differ.
func differ(got, want []byte) string {
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	return fmt.Sprintf("has %s and must have %s, they differ from byte %d", plural(len(got), "byte"), plural(len(want), "byte"), at)
}

// run has the replica send everything and returns what is wrong.
func (i *inspection) run(ctx context.Context) error {
	if _, err := i.replica.call(ctx, request{Do: "dump"}, func(r reply) { i.value(r.Key, r.value) }); err != nil {
		return err
	}
	return i.verdict()
}

// verdict returns what is wrong once all values have been checked.
func (i *inspection) verdict() error {
	if i.failed != nil {
		return i.failed
	}
	for _, key := range slices.Sorted(maps.Keys(i.expect.values)) {
		if !i.seen[key] {
			i.found = append(i.found, difference{key, "is missing"})
		}
	}
	if len(i.found) == 0 {
		return nil
	}
	more := ""
	if n := len(i.found) - 1; n > 0 {
		more = fmt.Sprintf(" (and %s)", plural(n, "further difference"))
	}
	return fmt.Errorf("%s: key %q %s%s", i.replica.name, i.found[0].key, i.found[0].what, more)
}

// alike checks that all replicas hold the same unsure keys.
func alike(inspections []*inspection) error {
	for key := range inspections[0].expect.unsure {
		for _, i := range inspections[1:] {
			if first := inspections[0]; i.seen[key] != first.seen[key] {
				return fmt.Errorf("key %q is on one of %s and %s, but not on the other", key, first.replica.name, i.replica.name)
			}
		}
	}
	return nil
}

// sourceFiles lists the files of the Go source, as paths with slashes below root: at most
// limit of them, spread evenly, or all if that is 0.
func sourceFiles(limit int) (root string, files []string, err error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", nil, fmt.Errorf("cannot find the Go source: go env GOROOT: %w", err)
	}
	root = filepath.Join(strings.TrimSpace(string(goroot)), "src")
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		key, err := filepath.Rel(root, path)
		files = append(files, filepath.ToSlash(key))
		return err
	})
	if err != nil {
		return "", nil, fmt.Errorf("list the Go source: %w", err)
	}
	if len(files) == 0 {
		return "", nil, fmt.Errorf("list the Go source: no files in %s", root)
	}
	slices.Sort(files)
	if limit > 0 {
		files = spread(files, limit)
	}
	return root, files, nil
}

// spread picks n of the keys, evenly.
func spread(keys []string, n int) []string {
	if n >= len(keys) {
		return slices.Clone(keys)
	}
	picked := make([]string, n)
	for i := range picked {
		picked[i] = keys[i*len(keys)/n]
	}
	return picked
}

// largestDirectory returns the top-level directory that holds most of the files, apart
// from the compiler's, and those files.
func largestDirectory(files []string) (dir string, within []string) {
	by := map[string][]string{}
	for _, f := range files {
		if top, _, ok := strings.Cut(f, "/"); ok && top != "cmd" {
			by[top] = append(by[top], f)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(by)) {
		if len(by[d]) > len(within) {
			dir, within = d, by[d]
		}
	}
	return dir + "/", within
}
