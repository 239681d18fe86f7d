package statuspage_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// The page stands under a prefix of the service, behind the login that the service
// has for its other pages of operation: it shows values, and has no login of its own.
func ExampleHandler() {
	raw, err := leveldb.Open(storage.NewMemStorage(), replicator.StoreOptions()) // or leveldb.OpenFile
	check(err)
	db, err := replicator.Replicate(raw, &replicator.Options{Name: "one", Listen: "127.0.0.1:0"})
	check(err)
	defer db.Close()

	// operator stands for what the service has: a session, single sign-on, …
	operator := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); password != "known to operators" {
				w.Header().Set("WWW-Authenticate", "Basic")
				http.Error(w, "operators only", http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
	mux := http.NewServeMux()
	mux.Handle("/replication/", operator(http.StripPrefix("/replication", statuspage.Handler(db))))

	service := httptest.NewServer(mux)
	defer service.Close()
	get := func(password string) {
		r, err := http.NewRequest(http.MethodGet, service.URL+"/replication/", nil)
		check(err)
		r.SetBasicAuth("me", password)
		answer, err := http.DefaultClient.Do(r)
		check(err)
		defer answer.Body.Close()
		fmt.Println(answer.Status, answer.Header.Get("Content-Type"))
	}
	get("a guess")
	get("known to operators")

	// Output:
	// 401 Unauthorized text/plain; charset=utf-8
	// 200 OK text/html; charset=utf-8
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
