package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

func newSecret(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "secret [FILE]",
		Short: "Make a secret for a cluster",
		Long: `Make a secret of 32 random bytes and print it, or write it to FILE, which only its
owner may read and which is never overwritten. Give the same file to all replicas of a
cluster with serve --secret-file, and keep it where other secrets are kept.`,
		Args: args(0, 1, "at most one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			text := base64.StdEncoding.EncodeToString(replicator.GenerateSecret()) + "\n"
			if len(args) == 0 {
				_, err := fmt.Fprint(a.out, text)
				return err
			}
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, os.ErrExist) {
				return &hintedError{err, "it may be the secret of a running cluster: name another file, or move this one away"}
			}
			if err != nil {
				return err
			}
			if _, err = f.WriteString(text); err == nil {
				err = f.Sync()
			}
			if err = errors.Join(err, f.Close()); err != nil {
				// Half a secret would look like one that must not be overwritten.
				err = errors.Join(err, os.Remove(args[0]))
			}
			return err
		},
	}
}

// built is what the command version prints.
type built struct {
	Version    string `json:"version"`
	Replicator string `json:"replicator"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

func newVersion(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of what it is built with",
		Args:  args(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			b := built{"(unknown)", "(unknown)", runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				b.Version = info.Main.Version
				for _, m := range info.Deps {
					if m.Path == "github.com/level-replicator/replicator" {
						b.Replicator = m.Version
					}
				}
			}
			if a.json {
				return a.printJSON(b)
			}
			_, err := fmt.Fprintf(a.out, "levelrepl %s\nreplicator %s\n%s %s\n", b.Version, b.Replicator, b.Go, b.Platform)
			return err
		},
	}
	a.jsonFlag(c)
	return c
}
