// Command resolver has two replicas write the same shopping cart concurrently, and merges
// the two versions.
//
// A resolver only decides what reads return. Both versions are kept, and listed by
// Conflicts, until somebody writes the key.
//
//	go run ./examples/resolver
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

var key = []byte("cart/alice")

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	if err := run(context.Background(), os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer) error {
	laptop, err := open("laptop")
	if err != nil {
		return err
	}
	defer laptop.Close()
	phone, err := open("phone")
	if err != nil {
		return err
	}
	defer phone.Close()

	fmt.Fprintln(out, "Each writes the cart, unseen by the other:")
	if err := write(out, "laptop", laptop, `{"coupon":"SPRING","items":{"apples":3,"bread":1}}`); err != nil {
		return err
	}
	if err := write(out, "phone", phone, `{"coupon":"SPRING","items":{"apples":5,"milk":2}}`); err != nil {
		return err
	}

	// They meet. Sync goes both ways.
	if err := laptop.AddPeer(phone.Addr().String()); err != nil {
		return err
	}
	if err := laptop.Sync(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "After a session, both return the merged cart:")
	if err := errors.Join(show(out, "laptop", laptop), show(out, "phone", phone)); err != nil {
		return err
	}

	// A write of a replica that holds both versions replaces both.
	fmt.Fprintln(out, "A write resolves the conflict:")
	cart, err := phone.Get(key, nil)
	if err != nil {
		return err
	}
	if err := phone.Put(key, cart, nil); err != nil {
		return err
	}
	if err := laptop.Sync(ctx); err != nil {
		return err
	}
	return errors.Join(show(out, "laptop", laptop), show(out, "phone", phone))
}

func open(name string) (*replicator.DB, error) {
	db, err := leveldb.Open(storage.NewMemStorage(), replicator.StoreOptions())
	if err != nil {
		return nil, err
	}
	return replicator.Replicate(db, &replicator.Options{Name: name, Listen: "127.0.0.1:0", Resolver: mergeCarts})
}

func write(out io.Writer, name string, db *replicator.DB, cart string) error {
	fmt.Fprintf(out, "  %-6s  %s\n", name, cart)
	return db.Put(key, []byte(cart), nil)
}

// show prints the value that a replica resolves to, and how many versions it stands for.
func show(out io.Writer, name string, db *replicator.DB) error {
	cart, err := db.Get(key, nil)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  %-6s  %s\n", name, cart)
	conflicts := 0
	for c, err := range db.Conflicts(context.Background()) {
		if err != nil {
			return err
		}
		conflicts++
		fmt.Fprintf(out, "          in conflict, %d versions are kept\n", len(c.Versions))
	}
	if conflicts == 0 {
		fmt.Fprintf(out, "          no conflict\n")
	}
	return nil
}
