package replicator

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/level-replicator/replicator/internal/store"
	"github.com/syndtr/goleveldb/leveldb"
)

// Update reads a key, calls f with what it read, and writes what f returns on the condition that the key has
// not changed meanwhile. If it has, all of that is done again. So no write of the key at this replica is lost,
// nor one that is pulled in: f has seen what it replaces. Another replica may write the key at the same time, and
// then both writes are kept, in conflict; f is given that conflict, with what the resolver makes of it, as soon
// as it is called for a key that is in one, and what it returns ends it.
//
// If keep is true value is written, else the key is deleted. An error of f ends Update, which returns it as it
// is and writes nothing. f may be called many times: apart from what it returns it should have no effect. It must
// not write the key itself, with Update or otherwise: each write would have it called once more. It owns v.Bytes,
// and may panic.
//
// Between two attempts Update waits for a random time that grows up to 10 ms. Callers that meet on
// a key are let through in the order in which they came, but none waits for more than a second for those before
// it: if f takes longer, they race. If ctx ends first Update returns its error, and has written nothing. It fails
// as [DB.PutIf] does otherwise. The write is made without Sync; [DB.WaitReplicated], or a later write with Sync,
// brings it to disk.
func (db *DB) Update(ctx context.Context, key []byte, f func(v Value) (value []byte, keep bool, err error)) error {
	if err := db.mayUpdate(ctx, key); err != nil {
		return err
	}
	turn := false
	defer func() {
		if turn {
			db.updates.leave(key)
		}
	}()
	for failed := 0; ; failed++ {
		if !turn && (failed > 0 || db.updates.busy(key)) {
			if turn = db.updates.enter(ctx, db.ending, key); turn {
				failed = 0 // waiting was enough
			}
		}
		if err := db.backOff(ctx, failed); err != nil {
			return err
		}
		if refused, err := db.updateOnce(ctx, key, f); !refused {
			return err
		}
	}
}

// mayUpdate waits until writes are let through, and refuses an Update that could not write.
func (db *DB) mayUpdate(ctx context.Context, key []byte) error {
	if err := db.conditional(key); err != nil {
		return err
	}
	select {
	case <-db.ready:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.ending:
		return leveldb.ErrClosed
	}
	return db.admit([]store.Write{{Key: key}})
}

// updateOnce is one attempt. refused reports whether the key had changed at its end.
func (db *DB) updateOnce(ctx context.Context, key []byte, f func(v Value) (value []byte, keep bool, err error)) (refused bool, err error) {
	v, err := db.Read(key)
	if err != nil && err != leveldb.ErrNotFound {
		return false, err
	}
	seen := slices.Clone(v.Seen) // f has a copy of its own
	value, keep, err := f(v)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return false, err
	}
	err = db.writeOn([]store.Write{{Key: key, Value: value, Deleted: !keep}}, []Cond{{key, seen}}, nil)
	return errors.Is(err, ErrChanged), err
}

// backOff waits before an attempt that follows others which failed.
func (db *DB) backOff(ctx context.Context, failed int) error {
	if err := ctx.Err(); err != nil || failed == 0 {
		return err
	}
	wait := time.NewTimer(rand.N(min(firstBackOff<<min(failed, 16), maxBackOff)))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-db.ending:
		return leveldb.ErrClosed
	}
}

const (
	firstBackOff = 25 * time.Microsecond
	maxBackOff   = 10 * time.Millisecond
	turnTime     = time.Second // that one caller of Update waits for those before it
)

// updates has callers of Update that have met on a key take turns: left to chance, one whose f takes long
// would lose to others for ever.
type updates struct {
	mu    sync.Mutex
	lines map[string]*line // of keys whose turn somebody has
}

// line are those that wait for the turn of one key, in order.
type line struct{ waiting []chan struct{} }

// busy reports whether somebody has the turn of a key.
func (u *updates) busy(key []byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.lines[string(key)] != nil
}

// enter waits for the turn of a key and reports whether it came. Who has it must leave.
func (u *updates) enter(ctx context.Context, ending <-chan struct{}, key []byte) bool {
	u.mu.Lock()
	l := u.lines[string(key)]
	if l == nil {
		if u.lines == nil {
			u.lines = map[string]*line{}
		}
		u.lines[string(key)] = new(line)
		u.mu.Unlock()
		return true
	}
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	u.mu.Unlock()
	patience := time.NewTimer(turnTime)
	defer patience.Stop()
	select {
	case <-turn:
		return true
	case <-patience.C:
	case <-ctx.Done():
	case <-ending:
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.Index(l.waiting, turn)
	if i < 0 {
		return true // it has just come
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	return false
}

// leave passes the turn of a key on.
func (u *updates) leave(key []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.lines[string(key)]
	if len(l.waiting) == 0 {
		delete(u.lines, string(key))
		return
	}
	close(l.waiting[0])
	l.waiting = l.waiting[1:]
}
