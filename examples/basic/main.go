// Command basic is replicator in twenty lines: three replicas, a write at the first, a
// read at the second, a deletion at the third. Here they share a process; in production
// each has its own, and nothing else changes.
//
//	go run ./examples/basic
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	run(context.Background())
}

// open makes a database one of many masters. The address of one other is
// enough: replicas tell each other whom they know.
func open(peers ...string) *replicator.DB {
	db, err := leveldb.Open(storage.NewMemStorage(), replicator.StoreOptions()) // or OpenFile
	check(err)
	replica, err := replicator.Replicate(db, &replicator.Options{Listen: "127.0.0.1:0", Peers: peers})
	check(err)
	return replica
}

func run(ctx context.Context) {
	one := open()
	two, three := open(one.Addr().String()), open(one.Addr().String())
	defer one.Close()
	defer two.Close()
	defer three.Close()

	check(one.Put([]byte("hello"), []byte("world"), nil))
	check(two.Sync(ctx)) // not needed: it would come by itself, but we do not want to wait
	value, err := two.Get([]byte("hello"), nil)
	check(err)
	fmt.Printf("written at one, read at two: hello %s\n", value)

	check(three.Sync(ctx))
	check(three.Delete([]byte("hello"), nil))
	check(three.Sync(ctx))
	_, err = one.Get([]byte("hello"), nil)
	fmt.Printf("deleted at three, read at one: %v\n", err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
