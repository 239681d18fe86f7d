package replicator

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
)

// recordJoin runs a workload in which an empty replica joins another, which is written to meanwhile, as is the one that
// joins; now and then the connection breaks, or the process ends.
func recordJoin(seed uint64) (*crashRun, error) {
	w := newCrashWorld(seed, 2<<10, 200)
	w.keys, w.joinAbove = 16, 1
	run, sa, sb, err := w.newRun()
	if err != nil {
		return nil, err
	}
	if w.b, err = w.open(sb, true); err != nil {
		return nil, err
	}
	defer func() { w.b.close() }()
	if w.a, err = w.open(sa, false); err != nil {
		return nil, err
	}
	defer func() { w.a.close() }()
	w.mark()
	for range 5 {
		if err := w.b.write(true, w.some(6)...); err != nil {
			return nil, err
		}
	}
	if seed%3 == 0 { // it holds something already
		err = w.a.write(false, w.some(4)...)
	}
	for i := 0; i < 4 && err == nil; i++ {
		err = errors.Join(w.joinFor(8+w.rng.IntN(30)), w.b.tend(), w.a.tend())
		if err == nil && w.rng.IntN(3) == 0 {
			err = w.restart(w.rng.IntN(2) == 0)
		}
	}
	if err == nil {
		err = w.talk(w.a, w.b)
	}
	store.Quiesce(w.a.db)
	store.Quiesce(w.b.db)
	return run, err
}

// joinFor has a pull from b for so many frames, between which both are written to.
func (w *crashWorld) joinFor(frames int) error {
	p := w.params()
	sa, sb := session.New(w.a, true, p), session.New(w.b, false, p)
	sa.Start()
	for frames > 0 && (!sa.Done() || !sb.Done()) {
		for _, x := range []struct{ from, to *session.Session }{{sa, sb}, {sb, sa}} {
			out, err := sim.Speak(x.from)
			if err != nil {
				return err
			}
			for _, f := range out {
				if err := x.to.Receive(f.Kind, f.Payload); err != nil {
					return err
				}
				w.counts[f.Kind]++
				frames--
			}
			switch w.rng.IntN(8) {
			case 0:
				err = w.b.write(true, w.some(1)...)
			case 1:
				err = w.b.write(true, store.Write{Key: w.key(), Deleted: true})
			case 2:
				err = w.a.write(w.rng.IntN(2) == 0, w.some(1)...)
			case 3:
				err = w.a.tend()
			}
			if err != nil {
				return err
			}
		}
	}
	return errors.Join(sa.Abandon(), sb.Abandon())
}

// TestPowerFailureDuringAJoin crashes joins at many operations of the storage, in every mode: with batches that are
// lost while later ones are kept, too. Each image must be as good as any other. At every operation of each run:
//
//	go test -run TestPowerFailureDuringAJoin -crash.images 20000 -timeout 2h .
func TestPowerFailureDuringAJoin(t *testing.T) {
	want, crash := *crashImages, (*crashRun).everywhere
	if want == 0 {
		want = 600
		if testing.Short() {
			want = 150
		}
		crash = func(r *crashRun, seed uint64, images *atomic.Int64) error { return r.randomly(seed, 40, images) }
	}
	var images, seeds atomic.Int64
	counts := [256]atomic.Int64{}
	started := time.Now()
	const workers = 4
	failed := make(chan error, workers)
	for range workers {
		go func() {
			var err error
			for err == nil && images.Load() < int64(want) {
				seed := uint64(seeds.Add(1))
				var run *crashRun
				if run, err = recordJoin(seed); err != nil {
					err = fmt.Errorf("seed %d: %w", seed, err)
				} else {
					err = crash(run, seed, &images)
					for kind, n := range run.counts {
						counts[kind].Add(int64(n))
					}
				}
			}
			failed <- err
		}()
	}
	for range workers {
		if err := <-failed; err != nil {
			images.Add(int64(want)) // so that the others end, too
			t.Error(err)
		}
	}
	require.Positive(t, counts[session.FrameEntries].Load())
	require.Positive(t, counts[session.FrameRows].Load())
	t.Logf("%d images of %d runs, %.0f a second; %d frames of log entries, %d of rows", images.Load(), seeds.Load(), float64(images.Load())/time.Since(started).Seconds(),
		counts[session.FrameEntries].Load(), counts[session.FrameRows].Load())
}
