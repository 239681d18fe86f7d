// Command webhook posts changes to a URL: an outbox by the feed of changes, with retries, that goes on
// where it was after a restart. The receiver here refuses every other request.
//
//	go run ./examples/webhook
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
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

func run(ctx context.Context) {
	raw, err := leveldb.Open(storage.NewMemStorage(), nil) // or leveldb.OpenFile(path, nil)
	check(err)
	db, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", LocalRanges: []*util.Range{Local}})
	check(err)
	defer db.Close()

	got := make(chan Event)
	server := httptest.NewServer(Unreliable(got))
	defer server.Close()
	outbox := Outbox{DB: db, Prefix: "order/", URL: server.URL, Client: http.DefaultClient, Pause: time.Millisecond, MaxPause: time.Second}

	for i := range 3 {
		check(db.Put(fmt.Appendf(nil, "order/%d", i), []byte("open"), nil))
		cut, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- outbox.Run(cut) }()
		want := fmt.Sprintf("order/%d", i)
		for e := range got {
			fmt.Printf("received %s: %s\n", e.Key, e.Value)
			if e.Key == want {
				break
			}
		}
		time.Sleep(2 * time.Second) // its cursor is on disk by then: else it would be received again
		stop()
		<-ended
	}
}

// Unreliable accepts every other request, and hands on what it has not had yet.
func Unreliable(got chan<- Event) http.Handler {
	var mu sync.Mutex
	n, had := 0, map[string]bool{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mu.Lock()
		n++
		refused, id := n%2 == 1, r.Header.Get("Idempotency-Key")
		again := had[id]
		had[id] = had[id] || !refused
		mu.Unlock()
		switch {
		case refused:
			w.WriteHeader(http.StatusServiceUnavailable)
		case !again:
			select {
			case got <- e:
			case <-r.Context().Done():
			}
		}
	})
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
