package prometheus_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
	replprom "github.com/level-replicator/replicator/metrics/prometheus"
)

func Example() {
	collector := replprom.NewCollector()
	raw, err := leveldb.Open(storage.NewMemStorage(), replicator.StoreOptions()) // or leveldb.OpenFile
	check(err)
	db, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Events: collector.Events(nil)})
	check(err)
	defer db.Close()
	collector.Observe(db)

	registry := prometheus.NewRegistry()
	registry.MustRegister(collector)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	check(db.Put([]byte("hello"), []byte("world"), nil))
	scrape := httptest.NewRecorder()
	mux.ServeHTTP(scrape, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(scrape.Body.String()) {
		if strings.HasPrefix(line, "replicator_keys") || strings.HasPrefix(line, "replicator_ready") {
			fmt.Print(line)
		}
	}

	// Output:
	// replicator_keys 1
	// replicator_ready 1
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
