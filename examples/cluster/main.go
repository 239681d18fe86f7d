// Command cluster shows replication of real files between real processes, and checks
// every byte.
//
// It starts replicas (three, or -n), each a process with its own database and directory,
// on loopback. They discover one another by multicast; where there is none, the command
// says so and gives them a list. The input is every file of the Go source under GOROOT, of
// which each replica imports its share, all at once. Then all of them edit the same files
// concurrently, a directory is deleted, and one replica is killed with kill -9 in mid-write
// and started again. At the end the command compares every value on every replica byte for
// byte with what must be there.
//
//	go run ./examples/cluster
//	go run ./examples/cluster -n 5 -keep
//	go run ./examples/cluster -serve
//
// With -serve the replicas keep running at the end, each with its status page, until Ctrl-C.
//
// The exit status is 1 if anything is wrong, and the last line says what.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/level-replicator/replicator/internal/demo"
)

func main() {
	if demo.IsReplica() { // started by the program itself
		os.Exit(demo.Replica(os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := demo.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
