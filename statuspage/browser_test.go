package statuspage_test

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// browser is a headless Chromium, a new process for each page.
type browser struct {
	t    *testing.T
	path string
}

func newBrowser(t *testing.T) *browser {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return &browser{t, path}
		}
	}
	t.Skip("no Chromium here: the page is not tried in a browser (Debian: apt-get install chromium fonts-dejavu-core)")
	return nil
}

const (
	noScript = "without scripts" // no flag, see run
	dark     = "--blink-settings=preferredColorScheme=0"
	light    = "--blink-settings=preferredColorScheme=1"
)

// command starts the browser with a profile of its own. It ends with ctx.
func (b *browser) command(ctx context.Context, args ...string) *exec.Cmd {
	b.t.Helper()
	profile, err := os.MkdirTemp("", "statuspage-")
	require.NoError(b.t, err)
	// What of the browser outlives its main process by a moment may still write there.
	b.t.Cleanup(func() { os.RemoveAll(profile) })
	if i := slices.Index(args, noScript); i >= 0 {
		// As the user's setting has it. The flag of Blink disables --dump-dom, too.
		args = slices.Delete(slices.Clone(args), i, i+1)
		prefs := filepath.Join(profile, "Default", "Preferences")
		require.NoError(b.t, os.Mkdir(filepath.Dir(prefs), 0o700))
		require.NoError(b.t, os.WriteFile(prefs, []byte(`{"profile":{"default_content_setting_values":{"javascript":2}}}`), 0o600))
	}
	return exec.CommandContext(ctx, b.path, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
		"--disable-background-networking", "--user-data-dir=" + profile, "--enable-logging=stderr",
	}, args...)...)
}

// run returns what the browser prints. It fails the test if the page broke its own policy
// or a script failed.
func (b *browser) run(args ...string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := b.command(ctx, args...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	require.NoError(b.t, cmd.Run(), log.String())
	for line := range strings.Lines(log.String()) {
		require.NotContains(b.t, line, "CONSOLE", "nothing to complain of")
	}
	return out.String()
}

// dom returns the page as it is after a while, in the page's own time.
func (b *browser) dom(url string, after time.Duration, args ...string) string {
	b.t.Helper()
	return b.run(append(args, fmt.Sprint("--virtual-time-budget=", after.Milliseconds()), "--dump-dom", url)...)
}

// brightness of the upper left corner of a picture of the page, 0 to 255. The
// pictures are kept where STATUSPAGE_SHOTS says.
func (b *browser) brightness(url, name string, width, height int, args ...string) int {
	b.t.Helper()
	dir := os.Getenv("STATUSPAGE_SHOTS")
	if dir == "" {
		dir = b.t.TempDir()
	}
	path := filepath.Join(dir, name+".png")
	b.run(append(args, fmt.Sprintf("--window-size=%d,%d", width, height), "--screenshot="+path, url)...)
	f, err := os.Open(path)
	require.NoError(b.t, err)
	defer f.Close()
	img, err := png.Decode(f)
	require.NoError(b.t, err)
	require.Equal(b.t, width, img.Bounds().Dx())
	r, g, bl, _ := img.At(2, 2).RGBA()
	return int(r+g+bl) / 3 >> 8
}

func TestBrowserShowsThePageWithAndWithoutScript(t *testing.T) {
	b := newBrowser(t)
	c := busyCluster(t)
	s := httptest.NewServer(statuspage.Handler(c.dbs[0]))
	defer s.Close()
	for name, args := range map[string][]string{"script": nil, "no script": {noScript}} {
		dom := b.dom(s.URL+"/", time.Second, args...)
		require.Contains(t, dom, "<h1>berlin</h1>", name)
		require.Contains(t, dom, "replicas agree", name)
		require.Contains(t, dom, "cart/4711", name)
		if name == "script" {
			require.Contains(t, dom, `<span id="live">live</span>`)
		} else {
			require.Contains(t, dom, `<span id="live" hidden=""></span>`)
		}
	}
}

func TestBrowserShowsThePageInLightAndDark(t *testing.T) {
	b := newBrowser(t)
	c := busyCluster(t)
	s := httptest.NewServer(statuspage.Handler(c.dbs[0]))
	defer s.Close()
	require.Greater(t, b.brightness(s.URL, "light", 1200, 1290, light), 200)
	require.Less(t, b.brightness(s.URL, "dark", 1200, 1290, dark), 60)
	require.Greater(t, b.brightness(s.URL, "narrow", 500, 2400, light), 200)
	require.Less(t, b.brightness(s.URL, "dark without script", 1200, 1290, dark, noScript), 60)
}

func TestOpenPageKeepsItselfUpToDate(t *testing.T) {
	b := newBrowser(t)
	c := newCluster(t, "one")
	s, asked := served(c, func() {
		for i := range 1234 {
			put(t, c.dbs[0], fmt.Sprint(i), "v")
		}
	})
	defer s.Close()
	require.Contains(t, b.dom(s.URL, 6*time.Second), "<dd>1,234</dd>")
	require.GreaterOrEqual(t, asked.Load(), int64(2))
}

func TestOpenPageReloadsWithoutScript(t *testing.T) {
	b := newBrowser(t)
	s, asked := served(newCluster(t, "one"), func() {})
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := b.command(ctx, noScript, "--remote-debugging-port=0", s.URL) // the port has it stay
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return asked.Load() >= 2 }, time.Minute, 50*time.Millisecond)
	cancel()
	require.Error(t, cmd.Wait(), "it was ended")
}

// served serves the page of the first replica, and calls then after the first request.
func served(c *cluster, then func()) (*httptest.Server, *atomic.Int64) {
	asked := new(atomic.Int64)
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A handler each, for the browser's time is not that of a handler.
		statuspage.Handler(c.dbs[0]).ServeHTTP(w, r)
		if asked.Add(1) == 1 {
			then()
		}
	})), asked
}

func TestOpenPageSaysWhenItIsOutOfDate(t *testing.T) {
	b := newBrowser(t)
	c := newCluster(t, "one")
	h := statuspage.Handler(c.dbs[0])
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) > 1 { // as a proxy whose login has ended would
			fmt.Fprint(w, "<p>Please sign in.</p>")
			return
		}
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	dom := b.dom(s.URL, 6*time.Second)
	require.Contains(t, dom, `<body class="stale">`)
	require.Regexp(t, `no news for \d+ s: the answer is another page; reload to sign in again`, dom)
	require.Contains(t, dom, "<h1>one</h1>", "what was known stays")
	require.NotContains(t, dom, "Please sign in")
}

// busyCluster is four replicas with something to see: one is away, two keys are
// in conflict, and there is traffic.
func busyCluster(t *testing.T) *cluster {
	c := newCluster(t, "berlin", "lyon", "oslo", "porto")
	for i := range 900 {
		put(t, c.dbs[i%4], fmt.Sprintf("stock/%04d", i), fmt.Sprintf(`{"sku": %d, "left": %d}`, i, i%17))
	}
	c.apart(func(i int, db *replicator.DB) {
		if i < 3 {
			put(t, db, "cart/4711", []string{`{"items": ["tea", "cup"]}`, `{"items": ["tea", "pot"]}`, `{"items": []}`}[i])
		}
		if i < 2 {
			put(t, db, "session/\x00\x9f", string([]byte{0x1f, 0x8b, 8, 0, byte(i), 0xff, 0, 0, 0x4a}))
		}
	})
	require.NoError(t, c.dbs[3].Close())
	c.dbs = c.dbs[:3]
	for i := range 40 {
		put(t, c.dbs[0], fmt.Sprint("order/", i), "new")
	}
	if os.Getenv("STATUSPAGE_SHOTS") != "" {
		c.writeForAWhile()
	}
	require.NoError(t, c.dbs[1].Delete([]byte("stock/0007"), nil))
	require.Eventually(t, func() bool {
		n := 0
		for _, p := range c.dbs[0].Status().Peers {
			if p.Agrees || !p.Live.IsZero() && p.Lag+p.Ahead == 0 {
				n++
			}
		}
		return n == 2
	}, time.Minute, 20*time.Millisecond)
	return c
}

// writeForAWhile makes a graph to look at.
func (c *cluster) writeForAWhile() {
	end := time.After(66 * time.Second)
	for i := range 1 << 20 {
		pause := 1.5 + math.Sin(float64(i)/150) + rand.Float64()
		select {
		case <-end:
			return
		case <-time.After(time.Duration(pause * float64(10*time.Millisecond))):
			put(c.t, c.dbs[i%len(c.dbs)], fmt.Sprint("order/", i), "shipped")
		}
	}
}
