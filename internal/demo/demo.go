// Package demo is the engine of examples/cluster: it runs a cluster of real processes on
// real files under faults, and checks every byte at the end.
package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

type options struct {
	replicas int
	files    int
	keep     bool
	list     bool
	serve    bool
}

// IsReplica reports whether this process was started by [Run] as one of its replicas.
func IsReplica() bool { return os.Getenv(roleEnv) != "" }

func parse(args []string, errOut io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("cluster", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.IntVar(&o.replicas, "n", 3, "how many `replicas` to start, at least 2")
	f.IntVar(&o.files, "files", 0, "import at most that many `files`, spread over all directories (0: all)")
	f.BoolVar(&o.keep, "keep", false, "leave the replicas' directories behind and say where")
	f.BoolVar(&o.list, "list", false, "give the replicas each other's addresses, without trying multicast")
	f.BoolVar(&o.serve, "serve", false, "keep the replicas running at the end, each with a status page, until Ctrl-C")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", f.Arg(0))
	case o.replicas < 2 || o.replicas > 32:
		return o, fmt.Errorf("-n %d, want 2 to 32 replicas", o.replicas)
	case o.files < 0:
		return o, fmt.Errorf("-files %d, want no negative number", o.files)
	}
	return o, nil
}

// Run does everything that args ask for and returns the exit status: 0 if every value on
// every replica is what it must be, 1 if not, 2 for arguments that are wrong. It starts the
// replicas as further processes of the program that it is in, which must call [Replica] where
// [IsReplica] is true. If ctx ends, Run stops them and leaves nothing behind.
func Run(ctx context.Context, args []string, out, errOut io.Writer) int {
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
		return nil, fmt.Errorf("find this program to start it again as a replica: %w", err)
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

// everything runs the phases in order and ends at the first that fails.
func (c *cluster) everything(ctx context.Context) error {
	c.screen.line("%s files of the Go source in %s, %d replicas.", count(len(c.files)), c.source, c.replicas)
	for _, p := range []phase{
		{"meet", c.meet},
		{"import", c.importFiles},
		{"edit", c.edit},
		{"resolve", c.resolve},
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
