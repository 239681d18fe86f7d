package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

// seen is the status that an address answered with.
type seen struct {
	Addr   string             `json:"address"`
	Error  string             `json:"error,omitempty"`
	Status *replicator.Status `json:"status,omitempty"`
}

func newStatus(a *app) *cobra.Command {
	var watch time.Duration
	var check bool
	c := &cobra.Command{
		Use:   "status [ADDR...]",
		Short: "Show replicas and their peers: which agree, which lag",
		Long: `Show what served replicas know of themselves and of their peers. For several addresses,
also show which hold the same, and how many writes each lacks that another has. An address
may also be that of a program with a status page (package statuspage).

While a session between two replicas is live, they tell each other what they know, and only every
few seconds what they hold: AGREES says live in between, unless the peer is a second behind. LIVE
says for how long. DELAY is how long the peer's writes took to become visible, half of them and
99 %, by the clocks of both.

With --check, unreachable peers count only if they were configured: an address that another
replica passed on may be out of date.`,
		Example: `  levelrepl status
  levelrepl status 127.0.0.1:9080 127.0.0.1:9081 127.0.0.1:9082 --watch=1s`,
	}
	a.jsonFlag(c)
	c.Flags().DurationVarP(&watch, "watch", "w", 0, "repeat the table, with this `pause`")
	c.Flags().Lookup("watch").NoOptDefVal = "2s"
	c.Flags().BoolVar(&check, "check", false, "exit with 1 unless all answer, take writes, and agree with their peers and each other")
	c.RunE = func(c *cobra.Command, addrs []string) error {
		replicas, err := remotes(addrs)
		if err != nil {
			return err
		}
		if watch < 0 {
			return &usageError{fmt.Errorf("--watch %v", watch), "want a pause, as 2s"}
		}
		for {
			all := askAll(c.Context(), replicas)
			var problems []string
			if check {
				problems = complaints(all)
			}
			if err := a.showStatus(all, watch > 0); err != nil {
				return err
			}
			if watch == 0 {
				return verdict(all, problems)
			}
			select {
			case <-c.Context().Done():
				return nil
			case <-time.After(watch):
			}
		}
	}
	return c
}

func remotes(addrs []string) ([]*remote, error) {
	if len(addrs) == 0 {
		addrs = []string{""}
	}
	replicas := make([]*remote, len(addrs))
	for i, addr := range addrs {
		n, err := newRemote(addr)
		if err != nil {
			return nil, err
		}
		replicas[i] = n
	}
	return replicas, nil
}

// askAll asks all replicas at once, so that their answers are of about one moment.
func askAll(ctx context.Context, replicas []*remote) []seen {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all := make([]seen, len(replicas))
	var wg sync.WaitGroup
	for i, n := range replicas {
		wg.Go(func() {
			all[i].Addr = n.name()
			s, err := n.status(ctx)
			if err != nil {
				all[i].Error = err.Error()
				return
			}
			all[i].Status = &s
		})
	}
	wg.Wait()
	return all
}

// verdict returns the error that status ends with.
func verdict(all []seen, problems []string) error {
	if len(problems) > 0 {
		return &foundError{strings.Join(problems, "; ")}
	}
	var errs []error
	for _, s := range all {
		if s.Error != "" {
			errs = append(errs, errors.New(s.Error))
		}
	}
	if len(errs) > 0 {
		return &hintedError{errors.Join(errs...), "give the HTTP address of levelrepl serve, or of a status page"}
	}
	return nil
}

// complaints lists what is wrong.
func complaints(all []seen) (list []string) {
	first := -1
	for i, s := range all {
		if s.Status == nil {
			list = append(list, s.Error)
			continue
		}
		if s.Status.Failed != "" {
			list = append(list, s.Addr+" takes no writes: "+s.Status.Failed)
		}
		if s.Status.Starved != "" {
			list = append(list, s.Addr+" takes no writes for now: "+s.Status.Starved)
		}
		if s.Status.Alone {
			list = append(list, s.Addr+" replicates with nobody: every address that it was given leads to itself")
		}
		if s.Status.Rewound {
			list = append(list, s.Addr+" was opened at an older state than it was closed in, and what was lost is not all back")
		}
		for _, p := range s.Status.Peers {
			if !p.Agrees && !p.Counting && !s.Status.Counting && !keepsUp(p) && counts(p) {
				list = append(list, fmt.Sprintf("%s and its peer %s do not agree", s.Addr, peerName(p)))
			}
		}
		if s.Status.Counting {
			continue // what it holds is not known yet
		}
		if first < 0 {
			first = i
		} else if s.Status.Digest != all[first].Status.Digest {
			list = append(list, fmt.Sprintf("%s and %s do not agree", all[first].Addr, s.Addr))
		}
	}
	return list
}

func (a *app) showStatus(all []seen, again bool) error {
	if a.json {
		if again {
			return a.lineJSON(all)
		}
		return a.printJSON(all)
	}
	var b strings.Builder
	if again && a.outTerm {
		b.WriteString("\x1b[H\x1b[2J")
	}
	if again {
		fmt.Fprintln(&b, time.Now().Format(time.DateTime))
	}
	if len(all) > 1 {
		printOverview(&b, all)
		printLags(&b, all)
	}
	for _, s := range all {
		if s.Status != nil {
			printReplica(&b, s, len(all) == 1)
		} else if again && len(all) == 1 { // else the command ends with it
			fmt.Fprintln(&b, s.Error)
		}
	}
	_, err := io.WriteString(a.out, b.String())
	return err
}

// counts reports whether a peer matters for --check. An address that a replica has left, or
// that is this replica's own, does not.
func counts(p replicator.PeerStatus) bool {
	return !p.Moved && p.State != replicator.PeerSelf && (p.Failures == 0 || p.Source == replicator.SourceConfigured)
}

// keepsUp reports whether the session with a peer is live and the peer takes everything within a second. Digests
// are compared in rounds only.
func keepsUp(p replicator.PeerStatus) bool {
	return !p.Live.IsZero() && p.LagTime < time.Second && !p.Differs
}
