package system_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

var killRounds = flag.Int("kill.rounds", 60, "how often to kill a process under load")

const (
	victimDir   = "REPLICATOR_VICTIM_DIR"
	victimPeer  = "REPLICATOR_VICTIM_PEER"
	victimRound = "REPLICATOR_VICTIM_ROUND"

	victimWriters = 4
	victimKeys    = 20 // of each writer
)

// TestVictim is the process that is killed: it writes as fast as it can and says
// what was acknowledged.
func TestVictim(t *testing.T) {
	dir := os.Getenv(victimDir)
	if dir == "" {
		t.Skip("only as a process of TestKilledProcessesLoseNothing")
	}
	started := time.Now()
	raw, err := leveldb.OpenFile(dir, &opt.Options{WriteBuffer: 256 << 10})
	require.NoError(t, err)
	db, err := replicator.Replicate(raw, &replicator.Options{
		Listen: "127.0.0.1:0", Peers: []string{os.Getenv(victimPeer)}, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	fmt.Printf("opened %d\n", time.Since(started).Microseconds())
	var writers sync.WaitGroup
	for w := range victimWriters {
		writers.Go(func() {
			for i := 0; ; i++ {
				batch, sync := victimWrite(os.Getenv(victimRound), w, i)
				if err := db.Write(batch, &opt.WriteOptions{Sync: sync}); err != nil {
					fmt.Printf("failed %v\n", err)
					return
				}
				fmt.Printf("wrote %d %d\n", w, i) // one write(2): lines are whole
			}
		})
	}
	writers.Wait()
}

// victimWrite is what a writer writes as its nth: two keys in one batch, always
// the same in both, or both deleted.
func victimWrite(round string, w, n int) (b *leveldb.Batch, sync bool) {
	b = new(leveldb.Batch)
	k, value := victimKey(w, n), victimValue(round, n)
	for _, half := range []string{"a", "b"} {
		if value == "" {
			b.Delete([]byte(half + k))
		} else {
			b.Put([]byte(half+k), []byte(value))
		}
	}
	return b, n%16 == 0
}

func victimKey(w, n int) string { return fmt.Sprintf("%d/%02d", w, n*7%victimKeys) }

func victimValue(round string, n int) string {
	if n%5 == 4 {
		return ""
	}
	return fmt.Sprintf("%s.%d.%s", round, n, strings.Repeat("x", n%900))
}

// victim is a run of the process, from the parent's side.
type victim struct {
	opened time.Duration
	acked  [victimWriters]int // writes acknowledged
}

// runVictim starts the process, lets it write for a while, and kills it.
func runVictim(t *testing.T, dir, peer, round string, pause time.Duration) (v victim) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$", "-test.v")
	cmd.Env = append(os.Environ(), victimDir+"="+dir, victimPeer+"="+peer, victimRound+"="+round)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // what is left may be half a line
		}
		var us int64
		var w, n int
		switch {
		case strings.HasPrefix(line, "opened "):
			fmt.Sscanf(line, "opened %d", &us)
			v.opened = time.Duration(us) * time.Microsecond
			kill.Reset(pause)
		case strings.HasPrefix(line, "wrote "):
			_, err := fmt.Sscanf(line, "wrote %d %d", &w, &n)
			require.NoError(t, err, line)
			v.acked[w] = n + 1
		case strings.HasPrefix(line, "=== "):
		default:
			cmd.Process.Kill()
			rest, _ := io.ReadAll(out)
			require.Fail(t, "the process says", "%s\n%s", line, rest)
		}
	}
	kill.Stop()
	require.Error(t, cmd.Wait(), "it should have been killed")
	require.NotZero(t, v.opened, "it was not killed while it wrote")
	return v
}

// requireAcknowledged compares what the killed process left with what it had
// acknowledged; was is what was there before, and is brought up to date.
func requireAcknowledged(t *testing.T, dir, round string, v *victim, was map[string]string) {
	raw, err := leveldb.OpenFile(dir, &opt.Options{ErrorIfMissing: true})
	require.NoError(t, err)
	defer raw.Close()
	get := func(key string) string {
		b, err := raw.Get([]byte(key), nil)
		if err != leveldb.ErrNotFound {
			require.NoError(t, err)
		}
		return string(b)
	}
	for w, acked := range v.acked {
		want := map[string]string{}
		for n := range acked {
			want[victimKey(w, n)] = victimValue(round, n)
		}
		inFlight := victimKey(w, acked)
		for i := range victimKeys {
			k := victimKey(w, i)
			expected, ok := want[k]
			if !ok {
				expected = was[k]
			}
			got := get("a" + k)
			require.Equal(t, got, get("b"+k), "the batch is torn: key %s in round %s", k, round)
			if k == inFlight && got != expected {
				expected = victimValue(round, acked)
			}
			require.Equal(t, expected, got, "key %s in round %s, %d writes acknowledged", k, round, acked)
			was[k] = got
		}
	}
}

// survivor is the peer of a process that is killed.
type survivor struct{ *replicator.DB }

func startSurvivor(t *testing.T) survivor {
	raw, err := leveldb.OpenFile(filepath.Join(t.TempDir(), "peer"), nil)
	require.NoError(t, err)
	db, err := replicator.Replicate(raw, &replicator.Options{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return survivor{db}
}

// forgetPeers forgets the addresses of the process. Else that is told of all where it was before, and is killed while
// it still tries them.
func (s survivor) forgetPeers() {
	for _, p := range s.Status().Peers {
		_ = s.RemovePeer(p.Addr) // some have no address of their own
	}
}

// requireAgreement waits until another replica agrees with it, and demands that both hold the same.
func (s survivor) requireAgreement(ctx context.Context, t *testing.T, db *replicator.DB) {
	for db.Digest() != s.Digest() {
		require.NoError(t, db.Sync(ctx))
	}
	require.Equal(t, testdb.Contents(t, db), testdb.Contents(t, s.DB))
}

// TestKilledProcessesLoseNothing kills a real process under load again and again.
// What it acknowledged must be there, and it must agree with its peer in the end.
//
//	go test ./internal/system -run TestKilledProcessesLoseNothing -kill.rounds 2000 -timeout 1h -v
func TestKilledProcessesLoseNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for half a minute")
	}
	dir := filepath.Join(t.TempDir(), "victim")
	quiet := slog.New(slog.DiscardHandler)
	peer := startSurvivor(t)

	was, total := map[string]string{}, 0
	var opened []time.Duration
	for round := range *killRounds {
		require.NoError(t, peer.Put(fmt.Appendf(nil, "peer/%d", round%50), fmt.Appendf(nil, "%d", round), nil))
		name := fmt.Sprint(round)
		v := runVictim(t, dir, peer.Addr().String(), name, time.Duration(50+rand.IntN(350))*time.Millisecond)
		peer.forgetPeers()
		requireAcknowledged(t, dir, name, &v, was)
		for _, n := range v.acked {
			total += n
		}
		opened = append(opened, v.opened)
	}

	left, err := leveldb.OpenFile(dir, nil)
	require.NoError(t, err)
	db, err := replicator.Replicate(left, &replicator.Options{Listen: "127.0.0.1:0", Peers: []string{peer.Addr().String()}, Logger: quiet})
	require.NoError(t, err)
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	peer.requireAgreement(ctx, t, db)
	for k, want := range was {
		got, err := peer.Get([]byte("a"+k), nil)
		if want == "" {
			require.ErrorIs(t, err, leveldb.ErrNotFound)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	slices.Sort(opened)
	t.Logf("%d kills, %d writes acknowledged, none lost; reopening took %v at the median, %v at p99, %v at most", *killRounds, total,
		opened[len(opened)/2], opened[(len(opened)*99-1)/100], opened[len(opened)-1])
}
