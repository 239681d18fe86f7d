package system_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

var killJoins = flag.Int("kill.joins", 8, "how often to kill a process that joins")

const joinerDir = "REPLICATOR_JOINER_DIR"

// TestJoiner is the process that is killed while it joins. It says when it has opened, and when it has all.
func TestJoiner(t *testing.T) {
	dir := os.Getenv(joinerDir)
	if dir == "" {
		t.Skip("only as a process of TestKilledWhileJoining")
	}
	raw, err := leveldb.OpenFile(dir, nil)
	require.NoError(t, err)
	db, err := replicator.Replicate(raw, &replicator.Options{
		Listen: "127.0.0.1:0", Peers: []string{os.Getenv(victimPeer)}, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	fmt.Println("opened")
	require.NoError(t, db.Sync(context.Background()))
	fmt.Printf("joined %d\n", db.Status().Keys)
	select {}
}

// runJoiner starts the process and kills it some time after it has opened, or when it has all. It returns how long
// that took, if it did.
func runJoiner(t *testing.T, dir, peer string, after time.Duration) (joined time.Duration) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestJoiner$", "-test.v")
	cmd.Env = append(os.Environ(), joinerDir+"="+dir, victimPeer+"="+peer)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer kill.Stop()
	var opened time.Time
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		switch {
		case err != nil:
			require.Error(t, cmd.Wait(), "it should have been killed")
			require.False(t, opened.IsZero(), "it was killed before it had opened")
			return joined
		case strings.HasPrefix(line, "opened"):
			opened = time.Now()
			kill.Reset(after)
		case strings.HasPrefix(line, "joined"):
			joined = time.Since(opened)
			cmd.Process.Kill()
		case !strings.HasPrefix(line, "=== "):
			cmd.Process.Kill()
			require.Fail(t, "the process says", line)
		}
	}
}

// TestKilledWhileJoining kills a real process again and again while it joins a peer that is written to. What it left
// fits together, and it has all in the end.
//
//	go test ./internal/system -run TestKilledWhileJoining -kill.joins 300 -timeout 1h -v
func TestKilledWhileJoining(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes")
	}
	quiet := slog.New(slog.DiscardHandler)
	peer := startSurvivor(t)
	addr := peer.Addr().String()
	rnd := rand.New(rand.NewPCG(1, 2))
	write := func(n int) {
		b := new(leveldb.Batch)
		for range n {
			if k := fmt.Appendf(nil, "%08d", rnd.IntN(60_000)); rnd.IntN(20) == 0 {
				b.Delete(k)
			} else {
				b.Put(k, fmt.Appendf(nil, "%d %s", rnd.Uint64(), strings.Repeat("x", rnd.IntN(100))))
			}
		}
		require.NoError(t, peer.Write(b, nil))
	}
	for range 60 {
		write(1000)
	}
	check := func(dir string, all bool) {
		raw, err := leveldb.OpenFile(dir, nil)
		require.NoError(t, err)
		o := &replicator.Options{Listen: "127.0.0.1:0", Logger: quiet}
		if all {
			o.Peers = []string{addr}
		}
		db, err := replicator.Replicate(raw, o)
		require.NoError(t, err)
		defer db.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if all {
			peer.requireAgreement(ctx, t, db)
		}
		r, err := db.Verify(ctx)
		require.NoError(t, err)
		require.Empty(t, r.Faults)
	}
	root, joins := t.TempDir(), 0
	dir := filepath.Join(root, "0")
	whole := runJoiner(t, dir, addr, time.Minute)
	require.NotZero(t, whole)
	check(dir, true)
	peer.forgetPeers()
	dir = filepath.Join(root, "1")
	for round := range *killJoins {
		write(20)
		if joined := runJoiner(t, dir, addr, time.Duration(rnd.Float64()*float64(whole))); joined > 0 {
			check(dir, true)
			require.NoError(t, os.RemoveAll(dir))
			joins++
			dir = filepath.Join(root, fmt.Sprint(joins+1))
		} else if round%8 == 7 {
			check(dir, false)
		}
		peer.forgetPeers()
	}
	check(dir, true)
	t.Logf("%d kills; a join that nothing disturbs takes %v, and %d came to their end all the same", *killJoins, whole.Round(time.Millisecond), joins)
}
