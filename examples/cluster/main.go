// Command cluster shows what replication does, on real files and real
// processes, and checks every byte of it.
//
// It starts servers (three, or -n) as processes of their own, each with its own
// database in a directory of its own, on loopback. They are told nothing of each
// other and meet by multicast; where this machine has no multicast it says so
// and gives them a list. The input is every file of the Go source under GOROOT,
// each server imports its share, all at once. Then all of them edit the same
// files without knowing of each other, a directory is deleted, one server is
// killed with kill -9 in mid-write and started again. At the end every value on
// every server is compared byte for byte with what must be there.
//
//	go run ./examples/cluster
//	go run ./examples/cluster -n 5 -keep
//	go run ./examples/cluster -serve
//
// With -serve the servers stay when all is done, each with its status page, until
// Ctrl-C.
//
// The exit status is 1 if anything is not as it must be, and the last line says what.
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
