// Command soak runs five real replicas under faults: under constant writes they are
// killed, stopped, started and cut off from each other; their clocks disagree, and they
// talk TLS. Now and then the load pauses and all must converge. At the end the command
// compares their contents byte by byte, and with what each replica acknowledged.
//
//	go run ./internal/soak -d 1h        # the long form
//	go run ./internal/soak -d 1m        # the short one
//
// With -fleet, many replicas each live in a network namespace of their own. They are told of
// three of them, write little, and some are killed. The command samples their file handles,
// too:
//
//	go run ./internal/soak -fleet -n 50 -rate 1 -d 5m
//
// Everything happens on this machine, in a temporary directory, and on the
// loopback interface or between namespaces, which need Linux, root and ip(8). The exit
// status is 1 if anything went wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"time"
)

func main() {
	duration := flag.Duration("d", time.Minute, "how long the replicas live")
	replicas := flag.Int("n", 5, "how many replicas")
	rate := flag.Int("rate", 100, "writes per second of each replica")
	asFleet := flag.Bool("fleet", false, "run each replica in a network namespace of its own")
	within := flag.Duration("within", 45*time.Second, "how long the replicas may take to agree when nobody writes and all links are up")
	percent := flag.Float64("kills", 1, "of a fleet, the percentage of replicas that is killed each minute")
	dir := flag.String("dir", "", "where the databases are kept; default: a temporary directory")
	seed := flag.Uint64("seed", 0, "of the order of events; 0: another each time")
	asReplica := flag.Bool("replica", false, "be one of the replicas; used by the command itself")
	flag.Parse()
	if *asReplica {
		signal.Ignore(os.Interrupt) // the parent decides
		if err := runReplica(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	var err error
	if *asFleet {
		err = runFleet(*replicas, *rate, *duration, *within, *percent, *dir, *seed)
	} else {
		err = runSoak(*replicas, *rate, *duration, *within, *dir, *seed)
	}
	switch {
	case errors.Is(err, errNoNamespaces):
		fmt.Println("skipped: a fleet of replicas,", err)
	case err != nil:
		fmt.Println("soak: FAILED:", err)
		os.Exit(1)
	default:
		fmt.Println("soak: ok")
	}
}

func runSoak(replicas, rate int, d, within time.Duration, dir string, seed uint64) error {
	s, err := newSoak(replicas, rate, within, dir, seed)
	if err != nil {
		return err
	}
	fmt.Printf("soak: %d replicas for %v, seed %d, in %s\n", replicas, d, seed, s.dir)
	return s.run(context.Background(), d)
}

func runFleet(replicas, rate int, d, within time.Duration, percent float64, dir string, seed uint64) error {
	// Namespaces outlive the processes in them.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	f, err := newFleet(replicas, rate, within, dir, seed)
	if err != nil {
		return err
	}
	fmt.Printf("soak: %d replicas in as many network namespaces for %v, seed %d, in %s\n", replicas, d, seed, f.dir)
	return f.run(ctx, d, percent)
}
