// Command levelrepl serves, inspects and repairs goleveldb databases that replicate with
// github.com/level-replicator/replicator.
//
//	levelrepl serve data --peer other.example:9000 --secret-file secret
//	levelrepl put greeting hello
//	levelrepl status
//	levelrepl compare data1 data2
//
// README.md beside this file shows all commands at work.
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

// Exit codes. Scripts can distinguish "no" from "could not find out".
const (
	exitOK     = 0
	exitFound  = 1 // the answer is no: a difference, a fault, a missing key
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

// run runs the command that args name and returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	stdout := &output{w: out}
	a := &app{in: in, stdout: stdout, out: stdout, err: errOut, outTerm: isTerminal(out), errTerm: isTerminal(errOut)}
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if stdout.err != nil && (err == nil || errors.Is(err, stdout.err)) {
		err = &hintedError{fmt.Errorf("cannot print the answer: %w", stdout.err), "the command is done; only its answer is lost"}
	}
	return a.report(err)
}

// output is standard output. It keeps the first error, so that a command fails if any of
// its output is lost.
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
		Short: "Serve, inspect and repair replicated goleveldb databases",
		Long: `levelrepl serves, inspects and repairs replicated goleveldb databases.

Commands that read or write keys talk to a served replica (--addr) or open the
directory of a stopped one (--dir). Reading never changes a directory.

Exit codes: 0 fine; 1 the answer is no (a difference, a fault, a missing key);
2 the command line is wrong; 3 it could not be done.`,
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
			hint += "; other arguments that begin with - go behind --: " + c.CommandPath() + " -- -5"
		}
		return &usageError{err, hint}
	})
	root.PersistentFlags().VarP(&a.encoding, "encoding", "e", "form of keys and values in arguments and output: auto, quoted, base64 or raw")
	_ = root.RegisterFlagCompletionFunc("encoding", cobra.FixedCompletions([]string{"auto", "quoted", "base64", "raw"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		newServe(a), newStatus(a), newGet(a), newPut(a), newDel(a), newScan(a),
		newConflicts(a), newResolve(a), newVerify(a), newRepair(a), newCompare(a), newLog(a), newChanges(a),
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

// foundError is for the answer no. Its text is empty if the command has printed it already.
type foundError struct{ text string }

func (e *foundError) Error() string { return e.text }

// hintedError is an error with a hint what to do next.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }

// report prints an error and returns its exit code.
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
		hint = "levelrepl verify names all that does not fit; levelrepl repair repairs it, in a served replica with what its peers have"
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	if err.Error() != "" {
		// Several errors are on a line each. They may hold text that others chose.
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
