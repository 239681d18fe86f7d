// Command levelrepl serves, inspects and mends goleveldb databases that
// replicate with github.com/level-replicator/replicator.
//
//	levelrepl serve data --peer other.example:9000 --secret-file secret
//	levelrepl put greeting hello
//	levelrepl status
//	levelrepl compare data1 data2
//
// README.md beside this file goes through all commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/level-replicator/replicator"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit codes. A script can tell "no" from "I could not find out".
const (
	exitOK     = 0
	exitFound  = 1 // a difference, a fault, a missing key: what was asked for is not so
	exitUsage  = 2 // the command line is wrong; nothing was done
	exitFailed = 3 // it could not be done
)

// app is one run of the program: where it reads and writes, and the flags that all
// commands share.
type app struct {
	in       io.Reader
	stdout   *output
	out, err io.Writer // out is stdout, for all but serve
	json     bool
	encoding encoding
	outTerm  bool // out is a terminal
	errTerm  bool // err is a terminal: progress bars are welcome
}

// run does what the arguments say and gives the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	stdout := &output{w: out}
	a := &app{in: in, stdout: stdout, out: stdout, err: errOut, outTerm: isTerminal(out), errTerm: isTerminal(errOut)}
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if stdout.err != nil && (err == nil || errors.Is(err, stdout.err)) {
		err = &hintedError{fmt.Errorf("cannot print the answer: %w", stdout.err), "what the command was to do is done; only its answer is lost"}
	}
	return a.report(err)
}

// output is standard output. It keeps the first error, so that what could not be said
// is an error of the command, whoever did the writing.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(p)
	o.err = err
	return n, err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "levelrepl",
		Short: "Serve, inspect and mend replicated goleveldb databases",
		Long: `levelrepl serves, inspects and mends goleveldb databases that replicate.

Commands that read or write keys talk to a served node (--addr) or open the
directory of a stopped one (--dir). Reading never changes a directory.

Exit codes: 0 fine; 1 what was asked for is not so (a difference, a fault, a
missing key); 2 the command line is wrong; 3 it could not be done.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if err := c.ValidateFlagGroups(); err != nil {
				return &usageError{err, "give one of them"}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			hint := "levelrepl --help lists the commands"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("did you mean %q? %s", near[0], hint)
			}
			return &usageError{fmt.Errorf("there is no command %q", args[0]), hint}
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		hint := c.CommandPath() + " --help lists the flags"
		if strings.HasPrefix(err.Error(), "unknown ") && !strings.HasSuffix(c.Use, c.Name()) {
			hint += "; what begins with - and is none stands behind --: " + c.CommandPath() + " -- -5"
		}
		return &usageError{err, hint}
	})
	root.PersistentFlags().VarP(&a.encoding, "encoding", "e", "how keys and values are given and shown: auto, quoted, base64 or raw")
	_ = root.RegisterFlagCompletionFunc("encoding", cobra.FixedCompletions([]string{"auto", "quoted", "base64", "raw"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		newServe(a), newStatus(a), newGet(a), newPut(a), newDel(a), newScan(a),
		newConflicts(a), newResolve(a), newVerify(a), newRepair(a), newCompare(a), newLog(a),
		newAdopt(a), newSecret(a), newVersion(a),
	)
	return root
}

// args checks how many arguments a command got.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		if len(given) >= least && (most < 0 || len(given) <= most) {
			return nil
		}
		return &usageError{fmt.Errorf("%s takes %s, not %d arguments", c.Name(), what, len(given)), "usage: " + c.UseLine()}
	}
}

// usageError is for a wrong command line.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }

// foundError is for an answer that is a no. What it says is empty if the command has
// said it already.
type foundError struct{ text string }

func (e *foundError) Error() string { return e.text }

// hintedError says what to do next.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }

// report prints an error and gives its exit code.
func (a *app) report(err error) int {
	var usage *usageError
	var found *foundError
	var hinted *hintedError
	code, hint := exitFailed, ""
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &found):
		code = exitFound
	case errors.As(err, &usage):
		code, hint = exitUsage, usage.hint
	case errors.As(err, &hinted):
		hint = hinted.hint
	case errors.Is(err, replicator.ErrCorrupted):
		hint = "levelrepl verify names all that does not fit; levelrepl repair mends it, of a served node with what its peers have"
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	if err.Error() != "" {
		// Several errors stand on a line each. One may hold what somebody else chose.
		lines := strings.Split(err.Error(), "\n")
		for i := range lines {
			lines[i] = safe(lines[i])
		}
		fmt.Fprintf(a.err, "levelrepl: %s\n", strings.Join(lines, "\n  "))
	}
	if hint != "" {
		fmt.Fprintf(a.err, "  %s\n", safe(hint))
	}
	return code
}
