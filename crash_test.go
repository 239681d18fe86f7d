package replicator

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/crashfs"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/sim"
	"github.com/level-replicator/replicator/internal/store"
)

// The tests here run for as many images as the flag says. The documented long run:
//
//	go test -run TestPowerFailure -crash.images 100000 -timeout 2h .
var crashImages = flag.Int("crash.images", 0, "images of power failures to try; 0: about 3,000")

var crashModes = append([]crashfs.Mode{crashfs.Everything}, crashfs.Modes...)

// step does one thing in a run.
func (w *crashWorld) step() error {
	a, b := w.a, w.b
	if w.rng.IntN(4) == 0 {
		if err := a.tend(); err != nil {
			return err
		}
	}
	n := w.rng.IntN(21)
	if w.forgets { // more of what is rare: deletions that are forgotten, new origins
		n = []int{3, 8, 8, 12, 17, 17, 18, 20, 20}[w.rng.IntN(9)]
	}
	switch {
	case n < 6:
		for range 1 + w.rng.IntN(4) {
			if err := a.write(w.rng.IntN(4) == 0, w.some(1)...); err != nil {
				return err
			}
		}
	case n < 8:
		return a.write(w.rng.IntN(3) == 0, w.some(2+w.rng.IntN(4))...)
	case n < 9:
		return a.write(w.rng.IntN(3) == 0, store.Write{Key: w.key(), Deleted: true})
	case n < 11:
		return b.write(true, w.some(1+w.rng.IntN(3))...)
	case n < 12: // a conflict
		key := w.key()
		return errors.Join(a.write(w.rng.IntN(2) == 0, store.Write{Key: key, Value: w.value()}),
			b.write(true, store.Write{Key: key, Value: w.value(), Deleted: w.rng.IntN(4) == 0}), w.talk(a, b))
	case n < 15:
		return w.talk(a, b)
	case n < 16:
		return w.talk(b, a)
	case n < 18: // what is deleted, both know to be on disk, and so it is forgotten
		for range 2 {
			if err := errors.Join(w.talk(a, b), a.tend(), b.tend(), w.talk(b, a)); err != nil {
				return err
			}
		}
		return errors.Join(a.purge(), b.purge())
	case n < 20:
		return w.restart(n == 18)
	default:
		w.b.close()
		b, err := w.open(w.b.stor, true)
		if err != nil {
			return err
		}
		w.b = b
		w.mark()
		return w.talk(a, b)
	}
	return nil
}

// restart closes the replica that will crash and opens it again, after a clean
// close or as after the death of the process.
func (w *crashWorld) restart(clean bool) error {
	if clean {
		if err := replica.MarkClean(w.a.db, w.a.r); err != nil {
			return err
		}
	}
	store.Quiesce(w.a.db)
	w.a.close()
	a, err := w.open(w.a.stor, false)
	if err != nil {
		return err
	}
	w.a = a
	if clean && (a.r.MayHaveStale || a.r.Rewound() != "") {
		return fmt.Errorf("a clean close was not recognised")
	}
	return sim.CheckStore(a.db, a.r)
}

func (w *crashWorld) key() []byte { return fmt.Appendf(nil, "key-%d", w.rng.IntN(w.keys)) }

func (w *crashWorld) value() []byte {
	w.nth++
	size := 20 + w.rng.IntN(200)
	if w.rng.IntN(8) == 0 {
		size = 1500 // several pages, and now and then a journal of its own
	}
	return append(fmt.Appendf(nil, "value %d ", w.nth), strings.Repeat("x", size)...)
}

func (w *crashWorld) some(n int) (ws []store.Write) {
	seen := map[string]bool{}
	for range n {
		if key := w.key(); !seen[string(key)] {
			seen[string(key)] = true
			ws = append(ws, store.Write{Key: key, Value: w.value()})
		}
	}
	return ws
}

// crashRun is a recorded run.
type crashRun struct {
	*crashWorld
	rec, peer *crashfs.Recording
}

// newRun begins a run, with the storages of a and b, which are recorded from now on.
func (w *crashWorld) newRun() (run *crashRun, sa, sb *crashfs.Storage, err error) {
	sa, sb = crashfs.New(nil), crashfs.New(nil)
	for _, s := range []*crashfs.Storage{sa, sb} {
		// A crash while goleveldb makes its directory is not ours to survive.
		n, err := w.open(s, true)
		if err != nil {
			return nil, nil, nil, err
		}
		n.close()
	}
	return &crashRun{crashWorld: w, rec: sa.Record(), peer: sb.Record()}, sa, sb, nil
}

// record runs a workload. What b commits is on disk and checkpointed at once, so
// that b opened on its storage is as good as b that never ended.
func record(seed uint64, steps, buffer, page int) (*crashRun, error) {
	w := newCrashWorld(seed, buffer, page)
	w.forgets = seed%2 == 0
	w.joinAbove = int64(store.Btoi(seed%4 < 2)) // so half of the runs that forget and half of the others join
	run, sa, sb, err := w.newRun()
	if err != nil {
		return nil, err
	}
	if w.a, err = w.open(sa, false); err != nil {
		return nil, err
	}
	defer func() { w.a.close() }()
	if w.b, err = w.open(sb, true); err != nil {
		return nil, err
	}
	defer func() { w.b.close() }()
	w.mark()
	for i := range steps {
		if err := errors.Join(w.step(), w.b.tend(), w.a.flushed()); err != nil {
			return nil, fmt.Errorf("seed %d, step %d: %w", seed, i, err)
		}
	}
	store.Quiesce(w.a.db)
	store.Quiesce(w.b.db)
	return run, nil
}

// image crashes the run after an operation and judges what is left. again, if not
// negative, says where in the opening and rejoining a second crash comes, in 1/1000.
func (r *crashRun) image(op int, mode crashfs.Mode, rng *rand.Rand, again int) error {
	at := r.marks[0]
	for _, m := range r.marks {
		if m.a <= op {
			at = m
		}
	}
	r.late = op%2 == 0
	defer func() { r.late = false }()
	b, err := r.open(r.peer.ImageAt(at.b, crashfs.Everything, nil), true)
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	defer func() { b.close() }()
	stor := r.rec.ImageAt(op, mode, rng)
	second := stor.Record()
	// A join goes by keys, and so tears batches until it has come to its end.
	if err := r.rejoin(stor, b, op, mode == crashfs.Everything, r.joinAbove == 0); err != nil || again < 0 {
		return err
	}
	op2 := second.First() + (second.Last()-second.First())*again/1000
	// What the first crash took is gone by right, so there is no more to ask for
	// than before it, and the peer has seen all of it.
	err = r.rejoin(second.ImageAt(op2, mode, rng), b, op, false, false)
	if err != nil {
		return fmt.Errorf("second crash, at its %s: %w", second.Describe(op2), err)
	}
	return nil
}

// opening crashes the run after an operation, and then once more after each operation of the storage in the opening that
// follows, whose work in the background goes on between the frames of sessions. It returns how many images that were.
func (r *crashRun) opening(op int, mode crashfs.Mode, rng *rand.Rand) (images int, err error) {
	r.late = true
	defer func() { r.late = false }()
	at := r.marks[0]
	for _, m := range r.marks {
		if m.a <= op {
			at = m
		}
	}
	rejoin := func(stor *crashfs.Storage, all, whole bool) error {
		b, err := r.open(r.peer.ImageAt(at.b, crashfs.Everything, nil), true)
		if err != nil {
			return fmt.Errorf("peer: %w", err)
		}
		defer b.close()
		return r.rejoin(stor, b, op, all, whole)
	}
	stor := r.rec.ImageAt(op, mode, rng)
	second := stor.Record()
	if err := rejoin(stor, mode == crashfs.Everything, false); err != nil { // that batches are whole is for TestPowerFailure
		return 0, err
	}
	for op2 := second.First(); op2 <= second.Last(); op2++ {
		mode2 := crashModes[rng.IntN(len(crashModes))]
		if err := rejoin(second.ImageAt(op2, mode2, rng), false, false); err != nil {
			return images, fmt.Errorf("second crash, %v, at its %s: %w", mode2, second.Describe(op2), err)
		}
		images++
	}
	return images, nil
}

// rejoin opens a crashed replica, judges it, and has it talk with its peer and
// with a new replica until all agree.
func (r *crashRun) rejoin(stor *crashfs.Storage, b *crashNode, op int, all, whole bool) error {
	a, err := r.open(stor, false)
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.checkCrash(op, all, whole); err != nil {
		return err
	}
	live, err := r.expectation(a, b)
	if err != nil {
		return err
	}
	c, err := r.open(crashfs.New(nil), true)
	if err != nil {
		return err
	}
	defer c.close()
	for round := 0; ; round++ {
		if round == 8 {
			return fmt.Errorf("no agreement after %d rounds", round)
		}
		err := errors.Join(r.talk(a, b), a.reissue(), b.reissue(), r.talk(b, c), r.talk(c, a))
		if err != nil {
			return fmt.Errorf("rejoining: %w", err)
		}
		if round > 0 { // at the latest
			if err := errors.Join(a.tidied(), b.tidied(), c.tidied()); err != nil {
				return err
			}
		}
		same := func(n *crashNode) bool {
			return (round > 0 || !r.late) && n.r.Digest == a.r.Digest && n.r.Known.VectorSum == a.r.Known.VectorSum
		}
		if same(b) && same(c) {
			break
		}
	}
	return r.checkAgreement(live, a, b, c)
}

// everywhere crashes a run at every operation in every mode.
func (r *crashRun) everywhere(seed uint64, images *atomic.Int64) error {
	for op := r.rec.First(); op <= r.rec.Last(); op++ {
		for _, mode := range crashModes {
			if err := r.crash(seed, op, mode, images); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *crashRun) crash(seed uint64, op int, mode crashfs.Mode, images *atomic.Int64) error {
	rng := rand.New(rand.NewPCG(seed<<20+uint64(op), uint64(mode)))
	again := -1
	if rng.IntN(4) == 0 {
		again = rng.IntN(1000)
		images.Add(1)
	}
	images.Add(1)
	if err := r.image(op, mode, rng, again); err != nil {
		return fmt.Errorf("seed %d, %s, %v, again at %d: %w", seed, r.rec.Describe(op), mode, again, err)
	}
	return nil
}

// randomly crashes a run n times at random operations.
func (r *crashRun) randomly(seed uint64, n int, images *atomic.Int64) error {
	rng := rand.New(rand.NewPCG(seed, 11))
	for range n {
		op := r.rec.First() + rng.IntN(r.rec.Last()-r.rec.First()+1)
		if err := r.crash(seed, op, crashModes[rng.IntN(len(crashModes))], images); err != nil {
			return err
		}
	}
	return nil
}

// crashSeed tries the images of one run.
func crashSeed(seed uint64, images *atomic.Int64) error {
	if seed%3 == 0 {
		run, err := record(seed, 120, 8<<10, 1<<10)
		if err == nil {
			err = run.randomly(seed, 60, images)
		}
		return err
	}
	run, err := record(seed, 6, 4<<10, 512)
	if err == nil {
		err = run.everywhere(seed, images)
	}
	return err
}

// TestPowerFailure crashes small runs at every operation of the storage, in every
// mode, and large ones at random. Each image must open, hold no torn batch, claim
// only what it has, have kept what was synced, and come to agree with its peers.
func TestPowerFailure(t *testing.T) {
	want := *crashImages
	if want == 0 {
		want = 3000
		if testing.Short() {
			want = 300
		}
	}
	var images, seeds atomic.Int64
	started := time.Now()
	const workers = 6 // they wait for goleveldb more than they compute
	failed := make(chan error, workers)
	for range workers {
		go func() {
			var err error
			for err == nil && images.Load() < int64(want) {
				err = crashSeed(uint64(seeds.Add(1)), &images)
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
	t.Logf("%d images of %d runs, %.0f a second", images.Load(), seeds.Load(), float64(images.Load())/time.Since(started).Seconds())
}

// TestPowerFailureWhileAnOpeningGoesOn crashes openings after a power failure at every operation of the storage, while
// what they leave to the background is done bit by bit. The second crash is as harmless as the first.
//
// design.md: O10, O11
func TestPowerFailureWhileAnOpeningGoesOn(t *testing.T) {
	want := 1000
	if testing.Short() {
		want = 100
	}
	images, stale := 0, 0
	for seed := uint64(1); images < want; seed++ {
		run, err := record(seed, 30, 4<<10, 512)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(seed, 12))
		op := run.rec.First() + rng.IntN(run.rec.Last()-run.rec.First()+1)
		mode := crashModes[rng.IntN(len(crashModes))]
		n, err := run.opening(op, mode, rng)
		if err != nil {
			t.Fatalf("seed %d, %s, %v: %v", seed, run.rec.Describe(op), mode, err)
		}
		images += n
		stale += run.swept
	}
	t.Logf("%d images, %d openings swept the log", images, stale)
}
