// Command cluster shows what replication does, on real files and real
// processes, and checks every byte of it.
//
// It starts servers (three, or -n) as processes of their own, each with its own
// database in a directory of its own, on loopback. They are told nothing of each
// other and meet by multicast; where this machine has no multicast it says so
// and gives them a list. The input is every file of the Go source under GOROOT,
// each server imports its share, all at once. Then all of them edit the same
// files without knowing of each other, a directory is deleted, one server is
// killed with kill -9 in mid-write and started again. At the end every value on
// every server is compared byte for byte with what must be there.
//
//	go run ./examples/cluster
//	go run ./examples/cluster -n 5 -keep
//	go run ./examples/cluster -serve
//
// With -serve the servers stay when all is done, each with its status page, until
// Ctrl-C.
//
// The exit status is 1 if anything is not as it must be, and the last line says what.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type options struct {
	servers int
	files   int
	keep    bool
	list    bool
	serve   bool
}

func main() {
	if os.Getenv(roleEnv) != "" {
		os.Exit(serverMain(os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func parse(args []string, errOut io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("cluster", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.IntVar(&o.servers, "n", 3, "how many `servers` to start, at least 2")
	f.IntVar(&o.files, "files", 0, "import only so many `files`, spread over all directories (0: all)")
	f.BoolVar(&o.keep, "keep", false, "leave the servers' directories behind and say where")
	f.BoolVar(&o.list, "list", false, "give the servers each other's addresses, without trying multicast")
	f.BoolVar(&o.serve, "serve", false, "in the end keep the servers running, with a status page each, until Ctrl-C")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", f.Arg(0))
	case o.servers < 2 || o.servers > 32:
		return o, fmt.Errorf("-n %d, want 2 to 32 servers", o.servers)
	case o.files < 0:
		return o, fmt.Errorf("-files %d, want no negative number", o.files)
	}
	return o, nil
}

// run does everything and returns the exit status.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	o, err := parse(args, errOut)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(errOut, "cluster:", err)
		return 2
	}
	c, err := newCluster(o, out)
	if err == nil {
		if err = c.everything(ctx); err == nil && o.serve {
			err = c.serve(ctx)
		}
		err = errors.Join(err, c.stop())
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted; nothing is left behind")
			if o.keep {
				err = errors.New("interrupted")
			}
		}
		fmt.Fprintln(errOut, "\ncluster:", err)
		return 1
	}
	return 0
}

func newCluster(o options, out io.Writer) (*cluster, error) {
	root, files, err := sourceFiles(o.files)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program to start it again as a server: %w", err)
	}
	dir, err := os.MkdirTemp("", "replicator-cluster-")
	if err != nil {
		return nil, err
	}
	return &cluster{
		options: o,
		screen:  newScreen(out),
		name:    "example-" + rand.Text()[:8],
		exe:     exe,
		dir:     dir,
		source:  root,
		files:   files,
		expect:  newExpected(),
		final:   map[string]report{},
		started: time.Now(),
	}, nil
}

// everything goes through the phases in order and ends at the first that fails.
func (c *cluster) everything(ctx context.Context) error {
	c.screen.line("%s files of the Go source in %s, %d servers.", count(len(c.files)), c.source, c.servers)
	for _, p := range []phase{
		{"meet", c.meet},
		{"import", c.importFiles},
		{"edit", c.edit},
		{"settle", c.settle},
		{"delete", c.deleteDirectory},
		{"kill -9", c.kill},
		{"restart", c.restart},
		{"compare", c.compareAll},
	} {
		if err := c.do(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return c.summary(ctx)
}
