// Command soak runs five real replicas under faults: under constant writes they are
// killed, stopped, started and cut off from each other; their clocks disagree, and they
// talk TLS. Now and then the load pauses and all must converge. At the end the command
// compares their contents byte by byte, and with what each replica acknowledged.
//
//	go run ./internal/soak -d 1h        # the long form
//	go run ./internal/soak -d 1m        # the short one
//
// Everything happens on this machine, in a temporary directory and on the
// loopback interface. The exit status is 1 if anything went wrong.
package main

import (
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
	s, err := newSoak(*replicas, *rate, *dir, *seed)
	if err == nil {
		fmt.Printf("soak: %d replicas for %v, seed %d, in %s\n", *replicas, *duration, *seed, s.dir)
		err = s.run(*duration)
	}
	if err != nil {
		fmt.Println("soak: FAILED:", err)
		os.Exit(1)
	}
	fmt.Println("soak: ok")
}
