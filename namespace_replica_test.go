package replicator

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestNamespaceReplica is a server in a namespace, for the tests below: it does what
// it is told on standard input, a command a line, and answers each with a line.
func TestNamespaceReplica(t *testing.T) {
	peers := os.Getenv(namespaceChild)
	if peers == "" {
		t.Skip("runs only as a child of other tests")
	}
	var dialed atomic.Bool // a session that it dialed has ended well
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	db, err := Replicate(raw, &Options{
		Listen: ":9000", Peers: strings.Split(peers, ","), Secret: secretA, MaxInterval: time.Second,
		Logger: slog.New(slog.DiscardHandler),
		Events: &Events{Session: func(e SessionEvent) {
			if e.Dialed && e.Err == nil {
				dialed.Store(true)
			}
		}},
	})
	require.NoError(t, err)
	defer db.Close()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch f := strings.Fields(in.Text()); f[0] {
		case "put":
			for i := range 20 {
				require.NoError(t, db.Put(fmt.Appendf(nil, "%s%d", f[1], i), []byte(f[1]), nil))
			}
			fmt.Println("done")
		case "digest":
			fmt.Println("digest", db.Digest(), len(shown(t, db)))
		case "dialed":
			fmt.Println("dialed", dialed.Load())
		}
	}
}

// replicas starts a server in each namespace. Each gets the address of the first,
// and the first that of the second, unless peers says otherwise.
func replicas(t *testing.T, ns []string) []*inside {
	var rs []*inside
	for i, n := range ns {
		peer := "10.77.0.1:9000"
		if i == 0 {
			peer = "10.77.0.2:9000"
		}
		rs = append(rs, startInside(t, n, "TestNamespaceReplica", peer))
	}
	for _, r := range rs {
		r.until(t, "ready")
	}
	return rs
}

// until reads lines up to one that starts as wanted.
func (c *inside) until(t *testing.T, start string) string {
	t.Helper()
	for c.lines.Scan() {
		if strings.HasPrefix(c.lines.Text(), start) {
			return c.lines.Text()
		}
	}
	t.Fatalf("no %q: %s", start, c.errs.String())
	return ""
}

func (c *inside) tell(t *testing.T, command, answer string) string {
	t.Helper()
	_, err := fmt.Fprintln(c.stdin, command)
	require.NoError(t, err)
	return c.until(t, answer)
}

// agreeWithin waits until all hold the same keys, so many of them.
func agreeWithin(t *testing.T, limit time.Duration, keys int, rs ...*inside) {
	t.Helper()
	start := time.Now()
	require.Eventually(t, func() bool {
		first := rs[0].tell(t, "digest", "digest")
		for _, r := range rs[1:] {
			if r.tell(t, "digest", "digest") != first {
				return false
			}
		}
		return strings.HasSuffix(first, fmt.Sprintf(" %d", keys))
	}, limit, 20*time.Millisecond)
	t.Logf("%d keys on %d servers after %v", keys, len(rs), time.Since(start))
}

// nft sets the filter of a namespace: rules for what comes in and what goes out.
func nft(t *testing.T, ns, in, out string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	cmd := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`flush ruleset
table inet f {
	chain in { type filter hook input priority 0; %s
	}
	chain out { type filter hook output priority 0; %s
	}
}
`, in, out))
	msg, err := cmd.CombinedOutput()
	if err != nil && strings.Contains(string(msg), "not supported") {
		t.Skipf("nft cannot filter here: %s", msg)
	}
	require.NoError(t, err, string(msg))
}

func TestMachineThatIsCutOffAndHealedAgrees(t *testing.T) {
	ns := bridged(t, 3, true, false, false)
	nft(t, ns[2], "", "")
	rs := replicas(t, ns)
	rs[0].tell(t, "put a", "done")
	agreeWithin(t, 10*time.Second, 20, rs...)

	nft(t, ns[2], "drop", "drop")
	rs[1].tell(t, "put b", "done")
	rs[2].tell(t, "put c", "done")
	agreeWithin(t, 10*time.Second, 40, rs[:2]...)
	require.True(t, strings.HasSuffix(rs[2].tell(t, "digest", "digest"), " 40"), "its own and what it had")

	nft(t, ns[2], "", "")
	agreeWithin(t, 20*time.Second, 60, rs...)
}

func TestMachineThatCannotBeDialedTakesPart(t *testing.T) {
	ns := bridged(t, 2, true, false, false)
	nft(t, ns[0], "", "tcp flags & (syn | ack) == syn drop") // it can only accept
	rs := replicas(t, ns)
	rs[0].tell(t, "put a", "done")
	rs[1].tell(t, "put b", "done")
	agreeWithin(t, 15*time.Second, 40, rs...)
	require.Equal(t, "dialed false", rs[0].tell(t, "dialed", "dialed"))
	require.Equal(t, "dialed true", rs[1].tell(t, "dialed", "dialed"))
}

func TestLinkThatLosesPacketsConverges(t *testing.T) {
	ns := bridged(t, 2, true, false, false)
	for _, n := range ns {
		nft(t, n, "numgen random mod 100 < 5 drop", "")
	}
	rs := replicas(t, ns)
	for i := range 5 {
		rs[i%2].tell(t, fmt.Sprintf("put r%d-", i), "done")
	}
	agreeWithin(t, 20*time.Second, 100, rs...)
}
