// Command soak lets five real servers live through bad days: they are written to
// all the time, killed, stopped and started, cut off from each other, their clocks
// disagree, and they talk TLS. Now and then the load pauses; then all must come to
// hold the same. In the end their contents are compared byte by byte, and with
// what each server had acknowledged.
//
//	go run ./internal/soak -d 1h        # the long form
//	go run ./internal/soak -d 1m        # the short one
//
// Everything happens on this machine, in a temporary directory and on the
// loopback interface. The exit status tells whether all was well.
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
	duration := flag.Duration("d", time.Minute, "how long the servers live")
	servers := flag.Int("n", 5, "how many servers")
	rate := flag.Int("rate", 100, "writes per second of each server")
	dir := flag.String("dir", "", "where the databases are kept; default: a temporary directory")
	seed := flag.Uint64("seed", 0, "of what happens when; 0: another each time")
	asServer := flag.Bool("server", false, "be one of the servers; used by the command itself")
	flag.Parse()
	if *asServer {
		signal.Ignore(os.Interrupt) // the parent decides
		if err := runServer(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	s, err := newSoak(*servers, *rate, *dir, *seed)
	if err == nil {
		fmt.Printf("soak: %d servers for %v, seed %d, in %s\n", *servers, *duration, *seed, s.dir)
		err = s.run(*duration)
	}
	if err != nil {
		fmt.Println("soak: FAILED:", err)
		os.Exit(1)
	}
	fmt.Println("soak: ok")
}
