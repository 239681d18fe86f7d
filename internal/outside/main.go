// Command outside uses every module of the tree as somebody does who does not have the
// tree: it serves them from a directory, as a module proxy would, installs the commands
// with go install, and in an empty module gets, builds and vets the packages of the others.
// Run it anywhere in the tree:
//
//	go run ./internal/outside          all of it, some minutes
//	go run ./internal/outside -tidy    go mod tidy in each nested module, which needs the others
//
// What is not of the tree comes from the module cache, or from where GOPROXY says.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var tidy = flag.Bool("tidy", false, "tidy the go.mod of each nested module")

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "outside:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	top, err := output("", nil, "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	t, err := readTree(top)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "outside")
	if err != nil {
		return err
	}
	u, err := newUser(dir, t)
	if err != nil {
		return err
	}
	defer u.leave()
	if *tidy {
		return u.tidyAll()
	}
	return u.useAll()
}

// user is somebody who has a module proxy, and no tree.
type user struct {
	dir  string
	tree *tree
	env  []string
}

func newUser(dir string, t *tree) (*user, error) {
	proxy := filepath.Join(dir, "proxy")
	if err := t.publish(proxy); err != nil {
		return nil, err
	}
	var conf [3]string
	for i, name := range []string{"GOMODCACHE", "GOPROXY", "GONOSUMDB"} {
		var err error
		if conf[i], err = output("", nil, "go", "env", name); err != nil {
			return nil, err
		}
	}
	// The cache of this machine serves what it has. A cache of our own takes what the tree
	// publishes: its version is the same at every run, and its content is not.
	proxies := fileURL(proxy) + "," + fileURL(filepath.Join(conf[0], "cache", "download")) + "," + conf[1]
	env := append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false", "GOPROXY="+proxies,
		"GOMODCACHE="+filepath.Join(dir, "modcache"), "GOBIN="+filepath.Join(dir, "bin"),
		"GONOSUMDB="+strings.Trim(t.path+","+conf[2], ","), "GOPRIVATE=", "GONOPROXY=none")
	return &user{dir: dir, tree: t, env: env}, nil
}

// leave removes all that was written.
func (u *user) leave() {
	output(u.dir, u.env, "go", "clean", "-modcache") // which the go command wrote read-only
	os.RemoveAll(u.dir)
}

func fileURL(dir string) string {
	dir = filepath.ToSlash(dir)
	if !strings.HasPrefix(dir, "/") { // with a drive letter
		dir = "/" + dir
	}
	return "file://" + dir
}

func (u *user) useAll() error {
	for _, m := range u.tree.modules {
		started := time.Now()
		use, how := u.get, "go get"
		if m.command {
			use, how = u.install, "go install"
		}
		if err := use(m); err != nil {
			return fmt.Errorf("%s %s@latest from outside: %w", how, m.path, err)
		}
		fmt.Printf("%-10s %s@latest: %.1f s\n", how, m.path, time.Since(started).Seconds())
	}
	return nil
}

// install installs a command and has it print its help.
func (u *user) install(m *module) error {
	if _, err := output(u.dir, u.env, "go", "install", m.path+"@latest"); err != nil {
		return err
	}
	_, err := output(u.dir, u.env, filepath.Join(u.dir, "bin", filepath.Base(m.path)), "-h")
	return err
}

// get makes a program that uses the packages of a module, and has its tests type-checked.
func (u *user) get(m *module) error {
	dir := filepath.Join(u.dir, "uses", filepath.FromSlash(m.path))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	program := "package main\n\n"
	for _, p := range m.packages {
		program += fmt.Sprintf("import _ %q\n", p)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program+"\nfunc main() {}\n"), 0o644); err != nil {
		return err
	}
	steps := [][]string{{"mod", "init", "example.com/user"}, {"get", "-t", m.path + "/...@latest"}, {"build", "."}, {"vet", m.path + "/..."}}
	for _, args := range steps {
		if _, err := output(dir, u.env, "go", args...); err != nil {
			return err
		}
	}
	return nil
}

// tidyAll tidies the nested modules. What it notes of the sums of the tree's own modules
// is out of date with the next commit.
func (u *user) tidyAll() error {
	for _, m := range u.tree.modules {
		if m.dir == "." {
			continue
		}
		dir := filepath.Join(u.tree.top, filepath.FromSlash(m.dir))
		if _, err := output(dir, u.env, "go", "mod", "tidy"); err != nil {
			return fmt.Errorf("%s: %w", m.dir, err)
		}
		sums := filepath.Join(dir, "go.sum")
		text, err := os.ReadFile(sums)
		if err != nil {
			return err
		}
		lines := slices.DeleteFunc(strings.SplitAfter(string(text), "\n"), func(l string) bool { return u.tree.holds(strings.Fields(l + " -")[0]) })
		if err := os.WriteFile(sums, []byte(strings.Join(lines, "")), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// output runs a program and returns what it prints, or as an error what it complains of.
func output(dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, env
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, complaint.String())
	}
	return strings.TrimSpace(string(out)), nil
}
