package replicator_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/testdb"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func openChecked(t testing.TB, db *replicator.DB) *replicator.Transaction {
	t.Helper()
	tr, err := db.OpenCheckedTransaction()
	require.NoError(t, err)
	t.Cleanup(tr.Discard)
	return tr
}

// walk is how a transaction reads, with an iterator over a range.
type walk func(it iterator.Iterator)

func steps(n int) walk {
	return func(it iterator.Iterator) {
		for range n {
			it.Next()
		}
	}
}

// design.md: W8
func TestChecked_CommitsOnlyWhatItReadStill(t *testing.T) {
	get := func(key string) func(t *testing.T, tr *replicator.Transaction) {
		return func(t *testing.T, tr *replicator.Transaction) {
			if _, err := tr.Get([]byte(key), nil); err != leveldb.ErrNotFound {
				require.NoError(t, err)
			}
		}
	}
	iterate := func(r *util.Range, w walk) func(t *testing.T, tr *replicator.Transaction) {
		return func(t *testing.T, tr *replicator.Transaction) {
			it := tr.NewIterator(r, nil)
			defer it.Release()
			w(it)
			require.NoError(t, it.Error())
		}
	}
	some := &util.Range{Start: []byte("c"), Limit: []byte("m")}
	for _, c := range []struct {
		name  string
		read  func(t *testing.T, tr *replicator.Transaction)
		moves string // keys, any of which refuses it
		still string // keys that it has not read
	}{
		{"nothing", func(*testing.T, *replicator.Transaction) {}, "", "a b c d e"},
		{"a value", get("c"), "c", "b bb cc d"},
		{"no value", get("cc"), "cc", "c d"},
		{"whether there is one", func(t *testing.T, tr *replicator.Transaction) {
			ok, err := tr.Has([]byte("e"), nil)
			require.NoError(t, err)
			require.True(t, ok)
		}, "e", "d f"},
		{"its own write", func(t *testing.T, tr *replicator.Transaction) {
			require.NoError(t, tr.Put([]byte("c"), nil, nil))
			get("c")(t, tr)
			require.NoError(t, tr.Delete([]byte("d"), nil))
			get("d")(t, tr)
		}, "", "c d e"},
		{"all", iterate(nil, steps(100)), "0 a aa h k zz", ""},
		{"a range", iterate(some, steps(100)), "c cc d g l", "b m n zz"},
		{"a range backwards", iterate(some, func(it iterator.Iterator) {
			for ok := it.Last(); ok; ok = it.Prev() {
			}
		}), "c cc d g l", "b m n zz"},
		{"the beginning of a range", iterate(some, steps(2)), "c cc d", "dd e g l b"},
		{"its end", iterate(some, func(it iterator.Iterator) {
			it.Last()
			it.Prev()
		}), "h hh i l", "gg g f c m"},
		{"from a key on", iterate(some, func(it iterator.Iterator) {
			it.Seek([]byte("ee"))
			it.Next()
		}), "ee f ff g", "e eb gg h c"},
		{"two places", iterate(some, func(it iterator.Iterator) {
			it.Seek([]byte("d"))
			it.Seek([]byte("gg"))
		}), "d gg gz h", "e g i c"},
		{"there and back", iterate(some, func(it iterator.Iterator) {
			it.Seek([]byte("f"))
			it.Prev()
			it.Prev()
			it.Next()
		}), "d dd e f", "c g"},
		{"behind the end", iterate(some, func(it iterator.Iterator) {
			it.Seek([]byte("zz"))
			it.Seek([]byte("ll"))
		}), "ll lz", "l m z"},
		{"back from behind the end", iterate(some, func(it iterator.Iterator) {
			it.Seek([]byte("zz"))
			it.Prev()
		}), "i l", "hz m"},
		{"before the start", iterate(some, func(it iterator.Iterator) { it.Seek(nil) }), "c", "b cc"},
		{"an empty range", iterate(&util.Range{Start: []byte("gg"), Limit: []byte("gz")}, steps(1)), "gg gh", "g gz h"},
		{"a range turned round", iterate(&util.Range{Start: []byte("x"), Limit: []byte("b")}, steps(2)), "", "b c x"},
		{"nothing of an iterator", iterate(nil, steps(0)), "", "a b c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			replicatortest.Bubble(t, 0, func(t *testing.T) {
				db := newCluster(t).start("a")
				try := func(key string, deletes bool) error {
					batch := new(leveldb.Batch)
					for k := range testdb.Contents(t, db) { // of the last time
						batch.Delete([]byte(k))
					}
					for k := 'a'; k <= 'i'; k++ {
						batch.Put([]byte(string(k)), []byte("v"))
					}
					require.NoError(t, db.Write(batch, nil))
					tr := openChecked(t, db)
					defer tr.Discard()
					c.read(t, tr)
					if deletes {
						require.NoError(t, db.Delete([]byte(key), nil))
					} else {
						require.NoError(t, db.Put([]byte(key), []byte("w"), nil))
					}
					require.NoError(t, tr.Put([]byte("result"), nil, nil))
					return tr.Commit()
				}
				for _, key := range strings.Fields(c.moves) {
					err := try(key, false)
					require.ErrorIs(t, err, replicator.ErrChanged, key)
					var which *replicator.ChangedError
					require.ErrorAs(t, err, &which)
					require.Equal(t, key, string(which.Key))
					require.Equal(t, "-", value(t, db, "result"))
					if len(key) == 1 && key >= "a" && key <= "i" {
						require.ErrorIs(t, try(key, true), replicator.ErrChanged, "deleted: %s", key)
					}
				}
				for _, key := range strings.Fields(c.still) {
					require.NoError(t, try(key, false), key)
				}
			})
		})
	}
}

func TestChecked_TransactionsAreOpenSideBySide(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		put(t, db, "k", "0")
		plain, err := db.OpenTransaction()
		require.NoError(t, err)
		one, two, writeOnly := openChecked(t, db), openChecked(t, db), openChecked(t, db)
		for _, tr := range []*replicator.Transaction{one, two} {
			_, err := tr.Get([]byte("k"), nil)
			require.NoError(t, err)
			require.NoError(t, tr.Put([]byte("k"), []byte("1"), nil))
		}
		require.NoError(t, writeOnly.Put([]byte("k"), []byte("2"), nil))
		require.NoError(t, one.Commit())
		require.ErrorIs(t, two.Commit(), replicator.ErrChanged)
		require.ErrorIs(t, two.Commit(), replicator.ErrChanged, "it does not come right")
		v, err := two.Get([]byte("k"), nil)
		require.NoError(t, err)
		require.Equal(t, "1", string(v), "it is still open")
		two.Discard()
		require.NoError(t, writeOnly.Commit(), "it has read nothing")
		require.NoError(t, plain.Put([]byte("k"), []byte("3"), nil))
		require.NoError(t, plain.Commit())
		require.Equal(t, "3", value(t, db, "k"))

		reader := openChecked(t, db)
		_, err = reader.Get([]byte("k"), nil)
		require.NoError(t, err)
		require.NoError(t, reader.Commit(), "without writes")
		reader = openChecked(t, db)
		_, err = reader.Get([]byte("k"), nil)
		require.NoError(t, err)
		put(t, db, "k", "4")
		require.ErrorIs(t, reader.Commit(), replicator.ErrChanged, "of a transaction without writes too")

		left := openChecked(t, db)
		require.NoError(t, db.Close())
		require.Equal(t, leveldb.ErrClosed, left.Commit())
	})
}

// A deletion that is purged, or a value that is deleted and was not there, is no change.
func TestChecked_AbsenceIsAbsence(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		tr := openChecked(t, db)
		_, err := tr.Get([]byte("k"), nil)
		require.Equal(t, leveldb.ErrNotFound, err)
		put(t, db, "k", "v")
		require.NoError(t, db.Delete([]byte("k"), nil))
		require.NoError(t, tr.Put([]byte("other"), nil, nil))
		require.NoError(t, tr.Commit())
	})
}

func TestChecked_NoticesLocalKeys(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).open("a", replicatortest.MemDB(t), &replicator.Options{LocalRanges: localRange("local/")})
		for _, c := range []struct {
			read  func(tr *replicator.Transaction) error
			write string
			moved bool
		}{
			{func(tr *replicator.Transaction) error { _, err := tr.Get([]byte("local/k"), nil); return err }, "local/k", true},
			{func(tr *replicator.Transaction) error { _, err := tr.Get([]byte("local/k"), nil); return err }, "local/l", false},
			{func(tr *replicator.Transaction) error {
				it := tr.NewIterator(util.BytesPrefix([]byte("lo")), nil)
				defer it.Release()
				for it.Next() {
				}
				return it.Error()
			}, "local/l", true},
		} {
			require.NoError(t, db.Delete([]byte("local/l"), nil))
			put(t, db, "local/k", "v")
			tr := openChecked(t, db)
			require.NoError(t, c.read(tr))
			put(t, db, c.write, "another")
			require.NoError(t, tr.Put([]byte("local/result"), nil, nil))
			if err := tr.Commit(); c.moved {
				require.ErrorIs(t, err, replicator.ErrChanged)
			} else {
				require.NoError(t, err)
			}
			tr.Discard()
		}
	})
}

// What is pulled in counts as what is written here.
func TestChecked_NoticesWhatIsPulledIn(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.start("a"), c.start("b", "a:9000")
		put(t, a, "seat/1", "free")
		requireAgreement(t, a, b)
		tr := openChecked(t, a)
		it := tr.NewIterator(util.BytesPrefix([]byte("seat/")), nil)
		for it.Next() {
		}
		it.Release()
		put(t, b, "seat/2", "free")
		requireAgreement(t, a, b)
		require.NoError(t, tr.Put([]byte("seats"), []byte("1"), nil))
		require.ErrorIs(t, tr.Commit(), replicator.ErrChanged)
	})
}

// Transfers between accounts, and audits of all of them, in real time: the sum never changes, and no audit is of
// two moments.
//
// design.md: W8
func TestChecked_TransfersKeepTheSum(t *testing.T) {
	db := newCluster(t).start("a")
	const accounts, sum = 8, 8 * 100
	account := func(i int) []byte { return fmt.Appendf(nil, "account/%d", i) }
	for i := range accounts {
		require.NoError(t, db.Put(account(i), []byte("100"), nil))
	}
	balance := func(tr *replicator.Transaction, i int) (int, error) {
		v, err := tr.Get(account(i), nil)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(string(v))
	}
	transfer := func(tr *replicator.Transaction, from, to int) error {
		x, err := balance(tr, from)
		if err != nil {
			return err
		}
		y, err := balance(tr, to)
		if err != nil || from == to || x == 0 {
			return err
		}
		return errors.Join(tr.Put(account(from), strconv.AppendInt(nil, int64(x-1), 10), nil), tr.Put(account(to), strconv.AppendInt(nil, int64(y+1), 10), nil))
	}
	audit := func(tr *replicator.Transaction, n int) error {
		total := 0
		it := tr.NewIterator(util.BytesPrefix([]byte("account/")), nil)
		defer it.Release()
		for it.Next() {
			v, err := strconv.Atoi(string(it.Value()))
			if err != nil {
				return err
			}
			total += v
		}
		if total != sum {
			return fmt.Errorf("an audit found %d", total)
		}
		return errors.Join(it.Error(), tr.Put(fmt.Append(nil, "audit/", n), nil, nil))
	}
	var refused, done atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 40 {
				tr, err := db.OpenCheckedTransaction()
				if err != nil {
					t.Error(err)
					return
				}
				if w == 0 {
					err = audit(tr, i)
				} else {
					err = transfer(tr, (i*w)%accounts, (i+w)%accounts)
				}
				if err == nil {
					err = tr.Commit()
				}
				tr.Discard()
				switch {
				case errors.Is(err, replicator.ErrChanged):
					refused.Add(1)
				case err != nil:
					t.Error(err)
					return
				default:
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for i := range accounts {
		n, err := strconv.Atoi(value(t, db, string(account(i))))
		require.NoError(t, err)
		total += n
	}
	require.Equal(t, sum, total)
	require.Positive(t, done.Load())
	t.Logf("%d done, %d refused", done.Load(), refused.Load())
}

// A transaction that takes its time under a load elsewhere in the database is not refused for it.
func TestChecked_LoadElsewhereRefusesNothing(t *testing.T) {
	replicatortest.Bubble(t, 0, func(t *testing.T) {
		db := newCluster(t).start("a")
		for i := range 1000 {
			put(t, db, fmt.Sprintf("mine/%03d", i), "v")
		}
		tr := openChecked(t, db)
		it := tr.NewIterator(util.BytesPrefix([]byte("mine/")), nil)
		n := 0
		for it.Next() {
			n++
		}
		require.Equal(t, 1000, n)
		it.Release()
		for i := range 3000 {
			put(t, db, fmt.Sprintf("other/%d", i), "v")
		}
		time.Sleep(time.Hour)
		require.NoError(t, tr.Put([]byte("mine/count"), []byte("1000"), nil))
		require.NoError(t, tr.Commit())
	})
}
