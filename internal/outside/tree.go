package main

import (
	"archive/zip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// tree is a checkout: its modules, and the files that git has of each.
type tree struct {
	top     string // directory
	path    string // of the module at the top
	version string // that the nested modules require, and all are published under
	modules []*module
}

type module struct {
	dir      string // with slashes, from the top
	path     string
	command  bool     // it is a command, and no library
	packages []string // that somebody else can import
	files    []string // with slashes, from the top
}

// readTree finds the modules of a checkout that have packages.
func readTree(top string) (*tree, error) {
	t := &tree{top: top}
	listed, err := output(top, nil, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return nil, err
	}
	files := slices.DeleteFunc(strings.Split(listed, "\x00"), func(f string) bool {
		_, err := os.Stat(filepath.Join(top, f))
		return f == "" || err != nil // removed, not yet committed
	})
	for _, f := range files {
		if path.Base(f) == "go.mod" {
			t.modules = append(t.modules, &module{dir: path.Dir(f)})
		}
	}
	// The longest first, so that a file is of the innermost module.
	slices.SortFunc(t.modules, func(a, b *module) int { return len(b.dir) - len(a.dir) })
	for _, f := range files {
		i := slices.IndexFunc(t.modules, func(m *module) bool { return m.dir == "." || strings.HasPrefix(f, m.dir+"/") })
		t.modules[i].files = append(t.modules[i].files, f)
	}
	slices.Reverse(t.modules)
	for _, m := range t.modules {
		if err := t.read(m); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(m.dir, "go.mod"), err)
		}
	}
	t.modules = slices.DeleteFunc(t.modules, func(m *module) bool { return len(m.packages) == 0 && !m.command })
	if t.version == "" {
		return nil, errors.New("no nested module requires the module at the top")
	}
	return t, nil
}

// read fills in what the go command says of a module.
func (t *tree) read(m *module) error {
	dir := filepath.Join(t.top, filepath.FromSlash(m.dir))
	text, err := output(dir, nil, "go", "mod", "edit", "-json")
	if err != nil {
		return err
	}
	var mod struct {
		Module  struct{ Path string }
		Require []struct{ Path, Version string }
		Replace []struct{ Old struct{ Path string } }
	}
	if err := json.Unmarshal([]byte(text), &mod); err != nil {
		return err
	}
	if m.path = mod.Module.Path; m.dir == "." {
		t.path = m.path
	}
	for _, r := range mod.Replace {
		return fmt.Errorf("it replaces %s: go install refuses it, and elsewhere that has no effect", r.Old.Path)
	}
	for _, r := range mod.Require {
		switch {
		case !t.holds(r.Path):
		case t.version != "" && t.version != r.Version:
			return fmt.Errorf("it requires %s %s, and another module %s", r.Path, r.Version, t.version)
		default:
			t.version = r.Version
		}
	}
	return m.list(dir)
}

// list finds out which packages a module has.
func (m *module) list(dir string) error {
	if !slices.ContainsFunc(m.files, func(f string) bool { return path.Ext(f) == ".go" }) {
		return nil
	}
	text, err := output(dir, nil, "go", "list", "-f", "{{.ImportPath}} {{.Name}}", "./...")
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		p, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case p == m.path && name == "main":
			m.command = true
		case name != "main" && !strings.Contains(p+"/", "/internal/"):
			m.packages = append(m.packages, p)
		}
	}
	return nil
}

// holds reports whether a module is one of the tree.
func (t *tree) holds(module string) bool {
	return module == t.path || strings.HasPrefix(module, t.path+"/")
}

// publish writes the modules as a module proxy serves them.
func (t *tree) publish(dir string) error {
	for _, m := range t.modules {
		at := filepath.Join(dir, filepath.FromSlash(m.path), "@v")
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		mod, err := os.ReadFile(filepath.Join(t.top, filepath.FromSlash(m.dir), "go.mod"))
		if err != nil {
			return err
		}
		info, err := json.Marshal(map[string]any{"Version": t.version, "Time": time.Now().UTC()})
		if err != nil {
			return err
		}
		for name, text := range map[string][]byte{"list": []byte(t.version + "\n"), t.version + ".mod": mod, t.version + ".info": info} {
			if err := os.WriteFile(filepath.Join(at, name), text, 0o644); err != nil {
				return err
			}
		}
		if err := t.pack(m, filepath.Join(at, t.version+".zip")); err != nil {
			return err
		}
	}
	return nil
}

// pack writes the files of a module, and a nested one gets the license of the top, as the
// go command does it.
func (t *tree) pack(m *module, name string) (err error) {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	z := zip.NewWriter(file)
	add := func(from, to string) error {
		content, err := os.ReadFile(filepath.Join(t.top, filepath.FromSlash(from)))
		if err != nil {
			return err
		}
		w, err := z.Create(m.path + "@" + t.version + "/" + to)
		if err == nil {
			_, err = w.Write(content)
		}
		return err
	}
	const license = "LICENSE"
	files := m.files
	if own := path.Join(m.dir, license); !slices.Contains(files, own) {
		if err := add(license, license); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := add(f, strings.TrimPrefix(f, m.dir+"/")); err != nil {
			return err
		}
	}
	return z.Close()
}
