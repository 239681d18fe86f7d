package statuspage

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))

	// If a key or a value slipped through as markup, the browser would still run and load
	// nothing but these two.
	policy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		hashOf(pageCSS), hashOf(pageJS))
)

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Handler returns a handler that serves the status page of db under any path. It answers
// GET and HEAD; however many ask, it reads the database once a second at most. Keep it from
// strangers; see the package's documentation.
//
// After db.Close it shows what is left in memory.
func Handler(db *replicator.DB) http.Handler { return &handler{db: db} }

type handler struct {
	db *replicator.DB

	latest latest

	mu   sync.Mutex
	page *Page // the latest; never changed
	read time.Time
}

// maxAge is how old a page may be that another request gets, too.
const maxAge = time.Second

// current returns a page that is not older than maxAge. Requests that come meanwhile wait
// for it, so the store is not read for each.
func (h *handler) current() *Page {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.page == nil || time.Since(h.read) >= maxAge {
		h.page = newPage(h.db, h.page)
		h.page.list(h.latest.look(h.db))
		h.read = time.Now()
	}
	return h.page
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the status page can only be read: use GET", http.StatusMethodNotAllowed)
		return
	}
	var body bytes.Buffer
	kind, err := "text/html; charset=utf-8", error(nil)
	if wantsJSON(r) {
		kind = "application/json"
		enc := json.NewEncoder(&body)
		enc.SetIndent("", "  ")
		err = enc.Encode(h.current())
	} else {
		err = pageTemplate.Execute(&body, newView(h.current()))
	}
	if err != nil {
		http.Error(w, "the status page cannot be rendered: "+err.Error(), http.StatusInternalServerError)
		return
	}
	head := w.Header()
	head.Set("Content-Type", kind)
	head.Set("Content-Length", strconv.Itoa(body.Len()))
	head.Set("Content-Security-Policy", policy)
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Cache-Control", "no-store")
	head.Set("Vary", "Accept")
	if r.Method == http.MethodGet {
		w.Write(body.Bytes())
	}
}

// wantsJSON reports whether a request asks for JSON: by its address, or by accepting JSON
// and not HTML.
func wantsJSON(r *http.Request) bool {
	if f := r.URL.Query().Get("format"); f != "" {
		return f == "json"
	}
	asJSON := false
	for _, accept := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(accept, ",") {
			switch kind, _, _ := mime.ParseMediaType(part); kind {
			case "text/html":
				return false
			case "application/json":
				asJSON = true
			}
		}
	}
	return asJSON
}
