package statuspage_test

import (
	"encoding/json"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/level-replicator/replicator/statuspage"
	"github.com/stretchr/testify/require"
)

func TestPageListsTheLatestChangesWhileSomebodyLooks(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		host := replicatortest.NewNetwork(1).Host("one")
		l, err := host.Listen("9000")
		require.NoError(t, err)
		db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{Name: "one", Listener: l, Dial: host.Dial, Insecure: true})
		require.NoError(t, err)
		defer db.Close()
		h := statuspage.Handler(db)
		read := func() (keys []string, html string) {
			time.Sleep(2 * time.Second) // a page is good for a second
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/?format=json", nil))
			var p statuspage.Page
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
			for _, c := range p.Changes {
				require.Equal(t, "one", c.Replica)
				require.True(t, c.Local)
				if c.Deleted {
					c.Text += " deleted"
				}
				keys = append(keys, c.Text)
			}
			w = httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			synctest.Wait()
			return keys, w.Body.String()
		}
		require.NoError(t, db.Put([]byte("before"), nil, nil))
		keys, html := read()
		require.Empty(t, keys)
		require.Contains(t, html, "None since this page was opened.")
		require.NoError(t, db.Put([]byte("a<b"), []byte("secret"), nil))
		require.NoError(t, db.Delete([]byte("before"), nil))
		keys, html = read()
		require.Equal(t, []string{"before deleted", "a<b"}, keys)
		require.Contains(t, html, "<code>a&lt;b</code>")
		require.NotContains(t, html, "secret")
		for i := range 20 {
			require.NoError(t, db.Put([]byte{byte('a' + i)}, nil, nil))
		}
		keys, _ = read()
		require.Len(t, keys, 10)
		require.Equal(t, "t", keys[0])
		time.Sleep(time.Minute) // nobody looks
		require.NoError(t, db.Put([]byte("unseen"), nil, nil))
		synctest.Wait()
		keys, _ = read()
		require.Equal(t, "t", keys[0])
	})
}
