package statuspage

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
)

func TestVerdictIsTheClusterInOneSentence(t *testing.T) {
	now := time.Now()
	origin := func(n byte) replicator.Origin { return replicator.Origin{n} }
	agrees := func(n byte) replicator.PeerStatus {
		return replicator.PeerStatus{Addr: string('a' + rune(n)), Origin: origin(n), State: replicator.PeerOK, Last: now, Agrees: true}
	}
	but := func(p replicator.PeerStatus, change func(p *replicator.PeerStatus)) replicator.PeerStatus {
		p.Agrees = false
		change(&p)
		return p
	}
	for _, c := range []struct {
		name  string
		s     replicator.Status
		class string
		text  string
	}{
		{"alone", replicator.Status{}, "", "No other replica is known yet"},
		{"only itself", replicator.Status{Peers: []replicator.PeerStatus{{State: replicator.PeerSelf}}}, "", "No other replica is known yet"},
		{"given only its own address", replicator.Status{Alone: true, Peers: []replicator.PeerStatus{{State: replicator.PeerSelf}}}, "bad", "This replica replicates with nobody: every address that it was given is its own"},
		{"two", replicator.Status{Peers: []replicator.PeerStatus{agrees(1)}}, "ok", "Both replicas agree"},
		{"three", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), agrees(2)}}, "ok", "All 3 replicas agree"},
		{"failed", replicator.Status{Failed: "disk full", Peers: []replicator.PeerStatus{agrees(1)}}, "bad", "This replica refuses writes: its store failed"},
		{"not compared", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), but(agrees(2), func(*replicator.PeerStatus) {})}}, "ok", "All 3 replicas have the same writes"},
		{"behind", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), but(agrees(2), func(p *replicator.PeerStatus) { p.Lag = 1 })}}, "busy", "2 of 3 replicas agree"},
		{"live", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), but(agrees(2), func(p *replicator.PeerStatus) { p.Lag, p.Live = 3, now })}}, "ok", "All 3 replicas agree, or are less than a second behind"},
		{"live and slow", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), but(agrees(2), func(p *replicator.PeerStatus) { p.Lag, p.LagTime, p.Live = 3, 2*time.Second, now })}}, "busy", "2 of 3 replicas agree"},
		{"live and differs", replicator.Status{Peers: []replicator.PeerStatus{but(agrees(2), func(p *replicator.PeerStatus) { p.Differs, p.Live = true, now })}}, "bad", "1 of 2 replicas agree"},
		{"ahead", replicator.Status{Peers: []replicator.PeerStatus{but(agrees(2), func(p *replicator.PeerStatus) { p.Ahead = 1 })}}, "busy", "1 of 2 replicas agree"},
		{"differs", replicator.Status{Peers: []replicator.PeerStatus{but(agrees(2), func(p *replicator.PeerStatus) { p.Differs = true })}}, "bad", "1 of 2 replicas agree"},
		{"refused", replicator.Status{Peers: []replicator.PeerStatus{{Addr: "x", State: replicator.PeerRefused}}}, "bad", "1 of 2 replicas agree"},
		{"not met", replicator.Status{Peers: []replicator.PeerStatus{{Addr: "x", State: replicator.PeerNew}}}, "busy", "1 of 2 replicas agree"},
		{"agreed once, and is gone", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), but(agrees(2), func(p *replicator.PeerStatus) { p.Agrees, p.State = true, "failing" })}}, "bad", "2 of 3 replicas agree"},
		{"by two addresses", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), but(agrees(1), func(p *replicator.PeerStatus) { p.Addr, p.State = "old", "failing" })}}, "ok", "Both replicas agree"},
		{"moved", replicator.Status{Peers: []replicator.PeerStatus{agrees(1), but(agrees(2), func(p *replicator.PeerStatus) { p.Moved, p.State = true, "failing" })}}, "ok", "Both replicas agree"},
	} {
		require.Equal(t, line{c.class, c.text}, verdict(&c.s), c.name)
	}
}

func TestLivePeersAreShownWithTheirDelays(t *testing.T) {
	now := time.Now()
	delay := func(o replicator.Origin, fast, slow int64) replicator.Delay {
		return replicator.Delay{Origin: o, Count: fast + slow, Max: 300 * time.Millisecond, Buckets: []replicator.DelayBucket{
			{Bound: 2 * time.Millisecond, Count: fast}, {Bound: 500 * time.Millisecond, Count: fast + slow},
		}}
	}
	s := &replicator.Status{
		Time: now, Interval: 10 * time.Second, Live: 1, Pushes: 1234, Pulled: 970, Duplicates: 30,
		Delays: []replicator.Delay{delay(replicator.Origin{1}, 98, 2), delay(replicator.Origin{3}, 900, 0)},
		Peers: []replicator.PeerStatus{
			{Addr: "a", Origin: replicator.Origin{1}, State: replicator.PeerOK, Last: now, Live: now.Add(-3 * time.Minute), Lag: 2, LagTime: 20 * time.Millisecond},
			{Addr: "b", Origin: replicator.Origin{2}, State: replicator.PeerOK, Last: now.Add(-5 * time.Second), Agrees: true},
		},
	}
	list := replicas(s)
	a, b := list[1], list[2]
	require.Equal(t, line{"ok", "live"}, a.Standing)
	require.Equal(t, []string{"live", "for 3 min", "2 ms", "99 %: 300 ms"}, []string{a.Last, a.LiveFor, a.Delay, a.MostDelay})
	require.Equal(t, []string{"5 s ago", "", "–", ""}, []string{b.Last, b.LiveFor, b.Delay, b.MostDelay})
	shown := map[string]tile{}
	for _, x := range tiles(s) {
		shown[x.Label] = x
	}
	require.Equal(t, tile{"", "Live sessions", "1", "1,234 pushes sent"}, shown["Live sessions"])
	require.Equal(t, tile{"", "Came twice", "3.0 %", "30 pushed versions"}, shown["Came twice"])
	require.Equal(t, tile{"", "Replication delay", "2 ms", "99 % within 2 ms"}, shown["Replication delay"])
	require.Equal(t, tile{"", "Between rounds", "10 s", "live sessions push changes"}, shown["Between rounds"])
	for _, x := range tiles(&replicator.Status{}) {
		shown[x.Label] = x
	}
	require.Equal(t, tile{"", "Replication delay", "–", "nothing has come yet"}, shown["Replication delay"])
	require.Equal(t, tile{"", "Came twice", "0 %", "0 pushed versions"}, shown["Came twice"])
}

func TestOperatorIsToldWhatToDo(t *testing.T) {
	now := time.Now()
	list := notes(&replicator.Status{
		Time: now, Ready: true, ReadOnly: true, Failed: "no space left on device", Mismatches: 3,
		Peers: []replicator.PeerStatus{
			{Addr: "a", Name: "gone", State: replicator.PeerFailing, Last: now.Add(-time.Hour)},
			{Addr: "b", State: replicator.PeerFailing},
			{Addr: "c", Name: "odd", State: replicator.PeerOK, Last: now, Differs: true},
			{Addr: "d", Name: "fine", State: replicator.PeerOK, Last: now, Agrees: true},
		},
	})
	var text strings.Builder
	for _, l := range list {
		text.WriteString(l.Text + "\n")
	}
	for _, want := range []string{
		"no space left on device. Reads go on; look at the disk, then open the database again.", "read-only", "3 versions came back",
		"gone was last heard 60 min ago.", "b has never answered.", "odd has the same version vector and holds something else.",
	} {
		require.Contains(t, text.String(), want)
	}
	require.NotContains(t, text.String(), "fine")
	require.Empty(t, notes(&replicator.Status{Ready: true}))
}

func TestWorkSaysHowFarItIs(t *testing.T) {
	require.Equal(t, work{"Pulling from b:9000", "1,500 of 3,000, 2.0 MiB, about 20 s left", 1500, 3000},
		newWork(replicator.Progress{Work: replicator.WorkPull, Peer: "b:9000", Keys: 1500, Total: 3000, Bytes: 2 << 20, Remaining: 20 * time.Second}))
	require.Equal(t, work{"Logging what was written past the wrapper", "7, 1 byte", 0, 0}, newWork(replicator.Progress{Work: replicator.WorkAdopt, Keys: 7, Bytes: 1}))
}

func TestGraphHasItsPeakAtTheTop(t *testing.T) {
	s := newSpark([]int64{0, 10, 5})
	require.Equal(t, "M0.0 46.0L120.0 3.0L240.0 24.5", s.Line)
	require.Equal(t, "15 changes in the last 3 seconds, at most 10 in one", s.Label)
	require.Equal(t, "M0.0 46.0L240.0 46.0", newSpark([]int64{0, 0}).Line)
}

func TestMergedValueIsShownBesideItsVersions(t *testing.T) {
	v := newConflict(&Conflict{
		Key:      []byte("k"),
		Versions: []Version{{Value: Value{Value: []byte("a"), Text: "a", Size: 1}, Replica: "one"}, {Value: Value{Deleted: true}}},
		Resolved: Value{Value: []byte("a and b"), Text: "a and b", Size: 7},
	}, time.Now())
	require.Equal(t, &merged{"merged by the resolver", "a and b", ""}, v.Merged)
	require.True(t, v.Versions[1].Deleted)
	require.Equal(t, "origin 00000000", v.Versions[1].By)
}

func TestTextIsShownAsText(t *testing.T) {
	require.Equal(t, "a\n\tb é ✓", text([]byte("a\n\tb é ✓")))
	for _, b := range []string{"\x00", "\xff", "a\x1b[31m", "\u202e", "é"[:1]} {
		require.Empty(t, text([]byte(b)), "%q", b)
	}
	cut := append([]byte(strings.Repeat("x", maxText-1)), "é"[0])
	require.Len(t, text(cut), maxText-1, "a rune that was cut in two is no reason to show bytes")
}

func TestFiguresAreForPeople(t *testing.T) {
	for want, got := range map[string]string{
		"1,234,567": count(1234567), "-1,234": count(-1234), "-123": count(-123), "0": count(0), "999": count(999),
		"1 byte": size(1), "1,023 bytes": size(1023), "1.0 KiB": size(1024), "2.5 GiB": size(5 << 29), "4096.0 TiB": size(4 << 50),
		"0 ms": span(-time.Second), "450 ms": span(450 * time.Millisecond), "12 s": span(12 * time.Second), "5 min": span(5 * time.Minute),
		"3 h": span(3 * time.Hour), "2 days": span(50 * time.Hour), "never": ago(time.Time{}, time.Now()),
		"0.3": rate(0.26), "12": rate(11.7), "12,345": rate(12345),
	} {
		require.Equal(t, want, got)
	}
}
