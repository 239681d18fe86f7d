package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/printable"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// shut is a store that nobody may read.
type shut struct{ t *testing.T }

func (s shut) Get([]byte, *opt.ReadOptions) ([]byte, error) { s.t.Error("Get"); return nil, nil }

func (s shut) NewIterator(*util.Range, *opt.ReadOptions) iterator.Iterator {
	s.t.Error("NewIterator")
	return iterator.NewEmptyIterator(nil)
}

func (s shut) Snapshot() (store.Snapshot, error) { s.t.Error("snapshot"); return nil, nil }

func TestStatusReadsNothingFromTheStore(t *testing.T) {
	a := serve(t, Options{})
	b := serve(t, Options{Peers: []string{a.Addr().String()}})
	for i := range 100 {
		require.NoError(t, a.Put(fmt.Append(nil, i), []byte("v"), nil))
	}
	require.NoError(t, a.Delete([]byte("7"), nil))
	require.NoError(t, b.Sync(t.Context()))
	r := replica.New(replica.Config{})
	a.with(func(x *replica.Replica) { *r = *x })
	r.Store = shut{t}
	var s Status
	s.own(r)
	require.EqualValues(t, 99, s.Keys)
	require.EqualValues(t, 1, s.Tombstones)
}

func TestPeerThatClaimsTheSameAndHoldsSomethingElseDiffers(t *testing.T) {
	known := causal.Knowledge{}
	known.Raise(causal.Covered, causal.Dot{Origin: causal.Origin{1}, Seq: 7})
	ours, theirs := causal.Sum{1, 1}, causal.Sum{2, 2}
	for _, c := range []struct {
		name            string
		m               replica.Member
		agrees, differs bool
	}{
		{"the same", replica.Member{Known: known, VectorSum: known.VectorSum, Digest: ours}, true, false},
		{"something else", replica.Member{Known: known, VectorSum: known.VectorSum, Digest: theirs}, false, true},
		{"it had not pulled yet", replica.Member{Known: known, VectorSum: causal.Sum{9}, Digest: theirs}, false, false},
	} {
		var s PeerStatus
		s.compare(&c.m, &peer{}, &known, &Status{Digest: Digest(ours.Digest())})
		require.Equal(t, c.agrees, s.Agrees, c.name)
		require.Equal(t, c.differs, s.Differs, c.name)
		for _, counting := range []*Status{{Counting: true}, {Digest: Digest(ours.Digest())}} {
			m := c.m
			m.Counting = !counting.Counting
			s.compare(&m, &peer{}, &known, counting)
			require.False(t, s.Agrees || s.Differs, "%s, and one of them is counting", c.name)
		}
	}
}

func TestStatusSaysWhatIsHeldBack(t *testing.T) {
	a := serve(t, Options{})
	require.NoError(t, a.Put([]byte("large"), sim.Incompressible(1, 1<<20), nil))
	require.NoError(t, a.Put([]byte("small"), []byte("v"), nil))
	b := serve(t, Options{Limits: Limits{MaxValue: 1000}, Peers: []string{a.Addr().String()}})
	require.NoError(t, b.Sync(t.Context()))
	v, err := b.Get([]byte("small"), nil)
	require.NoError(t, err)
	require.Equal(t, "v", string(v))
	s := b.Status()
	require.EqualValues(t, 1, s.HeldBack)
	require.EqualValues(t, 1<<20, s.Largest)
	require.Equal(t, PeerOK, s.Peers[0].State)
	for _, p := range a.Status().Peers {
		require.Positive(t, p.Lag, "it must not be taken to hold what it was not sent")
	}
	require.NoError(t, a.Put([]byte("large"), []byte("small now"), nil))
	require.NoError(t, b.Sync(t.Context()))
	require.Zero(t, b.Status().HeldBack)
	agree(t, a, b)
}

// Whoever dialed and served last takes the peer to cover what it was sent, unless
// something was withheld.
func TestStatusTakesNobodyToHoldWhatWasWithheld(t *testing.T) {
	b := serve(t, Options{Limits: Limits{MaxValue: 1000}})
	a := serve(t, Options{Peers: []string{b.Addr().String()}})
	require.NoError(t, a.Put([]byte("large"), sim.Incompressible(1, 1<<20), nil))
	require.NoError(t, a.Sync(t.Context()))
	require.EqualValues(t, 1, b.Status().HeldBack)
	require.Positive(t, a.Status().Peers[0].Lag)
}

// steering is a text that would clear a terminal, set its title, turn text around, and
// begin a line of its own.
const steering = "\x1b[2J\x9b2J\u009b2J\x1b]0;owned\a\u202e\u2028\r\nFORGED"

// unescaped writes log lines as they are, as a handler of a user's own might.
type unescaped struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (u *unescaped) Enabled(context.Context, slog.Level) bool { return true }

func (u *unescaped) WithAttrs([]slog.Attr) slog.Handler { return u }

func (u *unescaped) WithGroup(string) slog.Handler { return u }

func (u *unescaped) Handle(_ context.Context, r slog.Record) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	io.WriteString(&u.out, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		io.WriteString(&u.out, " "+a.Key+"="+a.Value.String())
		return true
	})
	io.WriteString(&u.out, "|")
	return nil
}

func (u *unescaped) String() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.out.String()
}

func requirePrintable(t *testing.T, text, of string) {
	t.Helper()
	require.False(t, strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), "%s: %q", of, text)
}

// What a peer, a stranger, a certificate or a source of peers says of itself comes out
// in Status, in errors and in the log, and may do nothing there to a terminal.
func TestWhatOthersChooseComesOutPrintable(t *testing.T) {
	log := &unescaped{}
	raw, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	var once sync.Once
	found := make(chan struct{})
	var sessions sync.Map
	db, err := Replicate(raw, &Options{
		Listen: "127.0.0.1:0", Logger: slog.New(log), Peers: []string{"127.0.0.1:1"},
		Discover: []Discoverer{DiscovererFunc(func(ctx context.Context, _ Self, f func(string)) error {
			f(steering + ":9000")
			f("10.255.255.1:" + steering)
			once.Do(func() { close(found) })
			return errors.New("the registry says: " + steering)
		})},
		Events: &Events{Session: func(e SessionEvent) {
			if e.Err != nil {
				sessions.Store(e.Err.Error(), true)
			}
		}},
	})
	require.NoError(t, err)
	defer db.Close()
	<-db.Ready()
	<-found
	requirePrintable(t, db.AddPeer(steering+":9000").Error(), "the error of AddPeer")

	r := greet(t, db.Addr().String(), func(h *session.Hello) { h.Name, h.Addr = steering, ":9"+steering })
	kind, payload := r.next()
	require.Equal(t, session.FrameHello, kind)
	r.theirs, err = session.DecodeHello(payload)
	require.NoError(t, err)
	r.page([]byte("k"), r.plain(1))
	require.Equal(t, session.FrameBye, r.await(session.FrameBye))
	bad := greet(t, db.Addr().String(), func(h *session.Hello) { h.Name, h.Addr = steering, ":9000" })
	bad.page([]byte("\xff\xff"+steering), bad.plain(1))
	bad.refusal()
	greet(t, db.Addr().String(), func(h *session.Hello) { h.Cluster = steering }).refusal()
	require.Eventually(t, func() bool {
		s := db.Status()
		return len(s.Refusals) > 0 && len(s.Peers) > 1
	}, 20*time.Second, time.Millisecond)

	s := db.Status()
	for _, p := range s.Peers {
		requirePrintable(t, p.Addr, "an address")
		requirePrintable(t, p.Name, "a name")
		requirePrintable(t, p.Error, "an error")
	}
	for _, r := range s.Refusals {
		requirePrintable(t, r.From+r.Reason, "a refusal")
	}
	db.with(func(r *replica.Replica) {
		named := 0
		for _, m := range r.Members {
			requirePrintable(t, m.Name, "a member")
			named += len(m.Name)
		}
		require.Positive(t, named)
	})
	sessions.Range(func(text, _ any) bool {
		requirePrintable(t, text.(string), "a session")
		return true
	})
	require.Contains(t, log.String(), "a source of peers failed")
	requirePrintable(t, log.String(), "the log")
	j, err := json.Marshal(s)
	require.NoError(t, err)
	requirePrintable(t, string(j), "the status")
}

func TestErrorOfAPeerIsOnePrintableLine(t *testing.T) {
	cause := errors.Join(errors.New("certificate is valid for "+steering), errors.New("not for node"))
	err := &PeerError{"a:9000", OpHandshake, cause}
	requirePrintable(t, err.Error(), "the error")
	require.Contains(t, err.Error(), "; not for node")
	require.ErrorIs(t, err, cause)
	requirePrintable(t, (&session.RefusedError{Text: printable.Printable(steering)}).Error(), "the refusal")
}

func TestAddressThatIsNotPrintableIsRefused(t *testing.T) {
	for _, addr := range []string{"a\x1b[2J:9000", "a:90\n", "a\u202e:9000", "a\xff:9000"} {
		require.ErrorContains(t, netaddr.CheckAddr(addr), "want \"host:port\"")
	}
}

func TestReplicasWithoutANameAreToldApart(t *testing.T) {
	host, err := os.Hostname()
	require.NoError(t, err)
	for listen, want := range map[string]string{"[::]:9000": host + ":9000", "0.0.0.0:9000": host + ":9000", "127.0.0.1:9000": "127.0.0.1:9000", "[::1]:9000": "[::1]:9000"} {
		a, err := net.ResolveTCPAddr("tcp", listen)
		require.NoError(t, err)
		require.Equal(t, want, nameAt(a))
	}
	db := serve(t, Options{Listen: "0.0.0.0:0", Insecure: true})
	require.True(t, strings.HasPrefix(db.Status().Name, host+":"), db.Status().Name)
}

func TestRefusalReachesTheCallerWithItsCode(t *testing.T) {
	for code, sent := range map[Code]session.RefuseCode{CodeSelf: session.RefuseSelf, CodeVersion: session.RefuseVersion, CodeBusy: session.RefuseBusy, CodeClock: session.RefuseClock} {
		var refused *RefusedError
		require.ErrorAs(t, &PeerError{"a:9000", OpHello, &session.RefusedError{Code: int(sent), Text: "no"}}, &refused)
		require.Equal(t, RefusedError{code, "no"}, *refused)
	}
}

var delaysBegan = time.UnixMilli(1_700_000_000_000)

func arrived(o causal.Origin, seq uint64, written time.Time) replica.Change {
	v := store.Version{Dot: causal.Dot{Origin: o, Seq: seq}, Stamp: causal.StampOf(written)}
	return replica.Change{Versions: store.Siblings{v}}
}

func TestDelayFallsIntoItsBucket(t *testing.T) {
	d := newDelays(delaysBegan)
	o := causal.Origin{1}
	now := delaysBegan.Add(time.Hour)
	for i, ago := range []time.Duration{0, time.Millisecond, 1500 * time.Microsecond, 3 * time.Millisecond, 100 * time.Second, 101 * time.Second, -5 * time.Second} {
		d.note([]replica.Change{arrived(o, uint64(i), now.Add(-ago))}, nil, now)
	}
	list := d.status(map[causal.Origin]*replica.Member{o: {Name: "one"}})
	require.Len(t, list, 1)
	x := list[0]
	require.Equal(t, "one", x.Name)
	require.Equal(t, Origin(o), x.Origin)
	require.EqualValues(t, 7, x.Count)
	require.EqualValues(t, 1, x.Early)
	require.Equal(t, 101*time.Second, x.Max)
	require.InDelta(t, 201*time.Second+5500*time.Microsecond, x.Sum, float64(time.Millisecond))
	counts := map[time.Duration]int64{}
	for _, b := range x.Buckets {
		counts[b.Bound] = b.Count
	}
	require.EqualValues(t, 3, counts[time.Millisecond], "and one that came early")
	require.EqualValues(t, 4, counts[2*time.Millisecond], "stamps are whole milliseconds: 1.5 ms counts as 2")
	require.EqualValues(t, 5, counts[5*time.Millisecond])
	require.EqualValues(t, 5, counts[50*time.Second])
	require.EqualValues(t, 6, counts[100*time.Second])
	require.Equal(t, 2*time.Millisecond, x.Quantile(0.5))
	require.Equal(t, 100*time.Second, x.Quantile(0.85))
	require.Equal(t, 101*time.Second, x.Quantile(1))
	require.Zero(t, Delay{}.Quantile(0.99))
}

func TestDelayIsOfNewVersionsOfOthersOnly(t *testing.T) {
	d := newDelays(delaysBegan)
	o, own := causal.Origin{1}, causal.Origin{2}
	now := delaysBegan.Add(time.Hour)
	c := func(change func(c *replica.Change)) replica.Change {
		c := arrived(o, 1, now)
		change(&c)
		return c
	}
	d.note([]replica.Change{
		c(func(c *replica.Change) { c.Local = true }),
		c(func(c *replica.Change) { c.Same = true }),
		c(func(c *replica.Change) { c.Quiet = true }),
		c(func(c *replica.Change) { c.Old = c.Versions }),
		c(func(c *replica.Change) { c.Versions = nil }),
		arrived(own, 1, now),
		arrived(o, 2, delaysBegan.Add(-time.Second)),
	}, map[causal.Origin]bool{own: true}, now)
	require.Empty(t, d.status(nil))
	both := arrived(o, 3, now)
	both.Old = store.Siblings{{Dot: causal.Dot{Origin: o, Seq: 2}}, {Dot: causal.Dot{Origin: o, Seq: 4}}}
	both.Versions = append(store.Siblings{{Dot: causal.Dot{Origin: o, Seq: 2}}}, both.Versions...)
	both.Versions = append(both.Versions, store.Version{Dot: causal.Dot{Origin: o, Seq: 4}}, store.Version{Dot: causal.Dot{Origin: causal.Origin{9}, Seq: 1}, Stamp: causal.StampOf(now)})
	d.note([]replica.Change{both}, nil, now)
	list := d.status(nil)
	require.Len(t, list, 2)
	require.EqualValues(t, 1, list[0].Count)
	require.EqualValues(t, 1, list[1].Count)
}

func TestDelaysOfManyOriginsAreBounded(t *testing.T) {
	d := newDelays(delaysBegan)
	origin := func(i int) (o causal.Origin) {
		binary.BigEndian.PutUint32(o[:], uint32(i+1))
		return o
	}
	now := delaysBegan
	count := func() (n int64) {
		for _, x := range d.status(nil) {
			n += x.Count
		}
		return n
	}
	for i := range 200 {
		now = now.Add(time.Second)
		d.note([]replica.Change{arrived(origin(i), 1, now)}, nil, now)
	}
	list := d.status(nil)
	require.Len(t, list, maxDelays+1)
	require.Zero(t, list[maxDelays].Origin)
	require.EqualValues(t, 200-maxDelays, list[maxDelays].Count)

	now = now.Add(2 * time.Hour)
	for i := range 3 { // of the first something comes at least
		d.note([]replica.Change{arrived(origin(0), uint64(2+i), now)}, nil, now)
	}
	d.note([]replica.Change{arrived(origin(999), 1, now)}, nil, now)
	list = d.status(nil)
	require.Len(t, list, maxDelays+1)
	named := map[Origin]int64{}
	for _, x := range list {
		named[x.Origin] = x.Count
	}
	require.EqualValues(t, 1, named[Origin(origin(999))], "one that was idle gave way")
	require.EqualValues(t, 4, named[Origin(origin(0))])
	require.NotContains(t, named, Origin(origin(1)), "that which was idle for longest")
	require.EqualValues(t, 204, count(), "nothing is lost")
}

func BenchmarkDelay(b *testing.B) {
	d := newDelays(delaysBegan)
	changes := make([]replica.Change, 100)
	now := delaysBegan.Add(time.Hour)
	for i := range changes {
		changes[i] = arrived(causal.Origin{byte(i % 4)}, uint64(i), now.Add(-3*time.Millisecond))
	}
	b.ReportAllocs()
	for b.Loop() {
		d.note(changes, nil, now)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(changes)), "ns/change")
}
