// Command registry shows replicas that discover one another through a service registry: a
// function of a few lines makes any source of addresses a [replicator.Discoverer].
//
// registry.go has a registry of its own, so there is nothing to install; consul.go reads
// the catalogue of a Consul agent instead.
//
//	go run ./examples/registry
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

const (
	ttl       = 3 * time.Second
	heartbeat = 100 * time.Millisecond
	patience  = 30 * time.Second
)

func main() {
	slog.SetLogLoggerLevel(slog.LevelError)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := run(ctx, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	reg := newRegistry(ttl)
	web := &http.Server{Handler: reg}
	go web.Serve(l)
	defer web.Close()

	var replicas []*replicator.DB
	for i := range 3 {
		db, err := open(fmt.Sprintf("replica-%d", i+1), fromRegistry("http://"+l.Addr().String(), heartbeat))
		if err != nil {
			return err
		}
		defer db.Close()
		replicas = append(replicas, db)
	}
	fmt.Fprintln(out, "three replicas know only the registry")
	if err := replicas[0].Put([]byte("hello"), []byte("from replica-1"), nil); err != nil {
		return err
	}
	for i, db := range replicas[1:] {
		value, err := arrives(ctx, db, "hello")
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "replica-%d reads: hello %s\n", i+2, value)
	}
	fmt.Fprintf(out, "the registry lists %d addresses\n", len(reg.addrs("shop")))
	return nil
}

func open(name string, d replicator.Discoverer) (*replicator.DB, error) {
	db, err := leveldb.Open(storage.NewMemStorage(), replicator.StoreOptions())
	if err != nil {
		return nil, err
	}
	return replicator.Replicate(db, &replicator.Options{
		Name:     name,
		Cluster:  "shop",
		Listen:   "127.0.0.1:0",
		Discover: []replicator.Discoverer{d},
	})
}

// arrives waits until a key is there and returns its value.
func arrives(ctx context.Context, db *replicator.DB, key string) ([]byte, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		value, err := db.Get([]byte(key), nil)
		if err != leveldb.ErrNotFound {
			return value, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s has not arrived: %w", key, ctx.Err())
		case <-tick.C:
		}
	}
}
