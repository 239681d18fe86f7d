// Command bench measures what replication costs. Every workload does the same user
// work on a bare goleveldb handle, on a replicated one, and on other systems that can do it,
// side by side in one process and in several rounds that take turns. What counts is the
// ratio within a round.
//
//	go run ./bench                       # all of it, about an hour
//	go run ./bench -run 'Put/.*value=100' -rounds 3
//	go run ./bench -run 'Load/nodes=3/rate=1000/' -d 1s
//	go run ./bench -short                # every workload once, small: does it run?
//	go run ./bench -doc docs             # no measuring: tables and plots from -results
//
// The rounds are appended to the file of -results, in the format of Go's benchmarks:
//
//	benchstat -col /system bench/results.txt
//
// With -doc it writes the tables between the markers of performance.md in that directory,
// and the plots beside it, from that file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime/pprof"
	"syscall"
)

func main() {
	if fillUntilKilled() || liveUntilKilled() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	run := flags.String("run", "", "measure only the scenarios whose name matches this `regexp`")
	systems := flags.String("systems", "", "measure only the systems whose name matches this `regexp`")
	rounds := flags.Int("rounds", 5, "how often everything is measured")
	span := flags.Duration("d", 0, "how long each steady load lasts (default 3s)")
	large := flags.Bool("large", false, "also measure the scenarios that take a large machine: a burst of 200 replicas, millions of keys, 90,000 origins")
	short := flags.Bool("short", false, "small sizes and one round: does it run?")
	results := flags.String("results", "", "`file` that the rounds are appended to, or that -doc reads (default bench/results.txt, none with -short)")
	doc := flags.String("doc", "", "do not measure: write tables and plots into this `directory`")
	note := flags.String("note", "", "what else the machine was doing, for the results")
	profile := flags.String("cpuprofile", "", "write a profile of the processor time to this `file`")
	dir := flags.String("dir", "", "`directory` for the databases (default that for temporary files)")
	if err := flags.Parse(args); err != nil {
		if err == flag.ErrHelp {
			return nil
		}
		return err
	}
	if *results == "" && !*short {
		*results = "bench/results.txt"
	}
	if *doc != "" {
		return writeDocs(*doc, *results)
	}
	p := plan{scale: full, rounds: *rounds, large: *large, dir: *dir, note: *note, log: os.Stderr, results: *results}
	if *short {
		p.scale, p.rounds = small, 1
	}
	if *span > 0 {
		p.scale.span = *span
	}
	var err error
	if p.run, err = regexp.Compile(*run); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if p.systems, err = regexp.Compile(*systems); err != nil {
		return fmt.Errorf("-systems: %w", err)
	}
	if *profile == "" {
		return p.measure(ctx)
	}
	f, err := os.Create(*profile)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return errors.Join(err, f.Close())
	}
	err = p.measure(ctx)
	pprof.StopCPUProfile()
	return errors.Join(err, f.Close())
}
