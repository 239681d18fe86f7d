// Command index keeps a secondary index and a full-text index over documents that replicate, by the
// feed of changes. The index is cut off and goes on, moves to another replica and goes on there, and is
// compared with a scan of all documents in the end.
//
//	go run ./examples/index
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	run(context.Background())
}

func open(peers ...string) *replicator.DB {
	db, err := leveldb.Open(storage.NewMemStorage(), nil) // or leveldb.OpenFile(path, nil)
	check(err)
	replica, err := replicator.Replicate(db, &replicator.Options{Listen: "127.0.0.1:0", Peers: peers, LocalRanges: []*util.Range{Local}})
	check(err)
	return replica
}

func run(ctx context.Context) {
	one := open()
	two := open(one.Addr().String())
	defer one.Close()
	defer two.Close()

	index := &Index{DB: one}
	write(one, 500)
	for range 5 { // it is cut off, and goes on from the cursor that it has stored
		cut, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		_ = index.Run(cut, false)
		cancel()
		write(one, 100)
	}
	check(index.Run(ctx, true))
	report("at one", index)

	check(Move(one, two))
	write(two, 500)
	index = &Index{DB: two}
	check(index.Run(ctx, true)) // two may be behind the cursor: then this waits for it
	report("moved to two", index)
}

// write writes some documents, changes some, and deletes some.
func write(db *replicator.DB, n int) {
	words := strings.Fields("causal cursor feed index log merge order purge replica scan state tombstone vector write")
	for range n {
		key := fmt.Appendf(nil, "%s%03d", documents, rand.IntN(400))
		if rand.IntN(5) == 0 {
			check(db.Delete(key, nil))
			continue
		}
		d := Document{Author: []string{"ada", "brian", "grace"}[rand.IntN(3)]}
		for range 8 {
			d.Text += words[rand.IntN(len(words))] + " "
		}
		value, err := json.Marshal(d)
		check(err)
		check(db.Put(key, value, nil))
	}
}

func report(where string, index *Index) {
	differ, err := index.Check()
	check(err)
	found, err := index.Search("cursor")
	check(err)
	by, err := index.By("ada")
	check(err)
	fmt.Printf("%s: %d documents have the word, %d are by ada; %d entries differ from a scan\n", where, len(found), len(by), differ)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
