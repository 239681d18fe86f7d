// Command resolver lets two servers write the same shopping cart without
// knowledge of each other, and merges the two.
//
// A resolver only decides what a key shows. Both versions are kept until
// somebody writes the key; Conflicts lists them meanwhile.
//
//	go run ./examples/resolver
package main

import (
	"context"
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

	fmt.Fprintln(out, "Apart, each writes the cart:")
	if err := write(out, "laptop", laptop, `{"coupon":"SPRING","items":{"apples":3,"bread":1}}`); err != nil {
		return err
	}
	if err := write(out, "phone", phone, `{"coupon":"SPRING","items":{"apples":5,"milk":2}}`); err != nil {
		return err
	}

	// They meet. Sync goes both ways.
	laptop.AddPeer(phone.Addr().String())
	if err := laptop.Sync(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "Together, both show both:")
	for _, s := range []server{{"laptop", laptop}, {"phone", phone}} {
		if err := s.show(out); err != nil {
			return err
		}
	}

	// Who writes now has seen both versions, so this replaces both.
	fmt.Fprintln(out, "A write settles it:")
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
	for _, s := range []server{{"laptop", laptop}, {"phone", phone}} {
		if err := s.show(out); err != nil {
			return err
		}
	}
	return nil
}

func open(name string) (*replicator.DB, error) {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	if err != nil {
		return nil, err
	}
	return replicator.Replicate(db, &replicator.Options{Name: name, Listen: "127.0.0.1:0", Resolver: mergeCarts})
}

func write(out io.Writer, name string, db *replicator.DB, cart string) error {
	fmt.Fprintf(out, "  %-6s  %s\n", name, cart)
	return db.Put(key, []byte(cart), nil)
}

type server struct {
	name string
	db   *replicator.DB
}

// show prints the value and, if there are several, the versions behind it.
func (s server) show(out io.Writer) error {
	cart, err := s.db.Get(key, nil)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  %-6s  %s\n", s.name, cart)
	conflicts := 0
	for _, versions := range s.db.Conflicts() {
		conflicts++
		fmt.Fprintf(out, "          in conflict, %d versions are kept\n", len(versions))
	}
	if conflicts == 0 {
		fmt.Fprintf(out, "          no conflict\n")
	}
	return nil
}
