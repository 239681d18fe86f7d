package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Document is what replicates, as JSON under documents and its id.
type Document struct {
	Author string `json:"author"`
	Text   string `json:"text"`
}

const documents = "doc/"

// Local is the range of keys that is not replicated. The index is in it, and so is the cursor: what a
// change does to the index and the cursor behind that change are one transaction, so each change counts
// exactly once, whenever the process is killed. The transaction is committed only if the cursor is still the one
// that this consumer has stored. So it is exactly once as well if there are two of them, one that was thought
// dead, say, and has come back: that one ends with ErrSuperseded.
var Local = util.BytesPrefix([]byte("index/"))

const (
	byAuthor  = "index/author/" // author, 0, id → nothing
	byWord    = "index/word/"   // word, 0, id → nothing
	keysOf    = "index/of/"     // id → the keys above that the document has
	cursorKey = "index/cursor"  // which consumer, counted from 1 in 8 bytes, and its cursor
)

// ErrSuperseded ends a consumer after another has begun to keep the index.
var ErrSuperseded = errors.New("another consumer keeps the index now")

// Index is an index over the documents of a replica, by author and by word.
type Index struct {
	DB *replicator.DB

	pending map[string]*Document // changed since the last transaction; nil: deleted
	stored  []byte               // what is at cursorKey as long as this consumer keeps the index
}

// most is how many documents wait for a cursor, which comes when all that one state of the database has
// was yielded. Beyond that they are indexed without one, and again after a crash.
const most = 1000

// Run keeps the index until ctx ends, or as long as there is something to be indexed if once is set.
func (x *Index) Run(ctx context.Context, once bool) error {
	since, err := x.begin()
	if err != nil {
		return err
	}
	for c, err := range x.DB.Changes(ctx, since, &replicator.ChangesOptions{Prefix: []byte(documents), Once: once}) {
		switch {
		case err != nil:
			return err
		case c.Reset:
			if err := x.clear(); err != nil {
				return err
			}
		case c.Key != nil:
			var d *Document
			if !c.Deleted && json.Unmarshal(c.Value, &d) != nil {
				d = nil // no document: it is not to be found
			}
			x.pending[strings.TrimPrefix(string(c.Key), documents)] = d
		}
		if !c.Cursor.IsZero() || len(x.pending) >= most {
			if err := x.flush(c.Cursor); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// begin has the index kept by this consumer, and by no other that was before, and returns the cursor.
func (x *Index) begin() (since replicator.Cursor, err error) {
	x.pending = map[string]*Document{}
	x.stored, err = x.DB.Get([]byte(cursorKey), nil)
	if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
		return since, err
	}
	var nth uint64
	if len(x.stored) >= 8 {
		nth = binary.BigEndian.Uint64(x.stored)
		if err := since.UnmarshalBinary(x.stored[8:]); err != nil {
			return since, err
		}
	}
	next := binary.BigEndian.AppendUint64(nil, nth+1)
	if nth > 0 {
		next = append(next, x.stored[8:]...)
	}
	return since, x.commit(next, func(*replicator.Transaction) error { return nil })
}

// commit has f change the index, and stores what is to be at cursorKey, all of it or nothing: if that is not what
// this consumer has stored there, the index is another's. Conditions of WriteIf cannot be of local keys, but
// a checked transaction notices any change of what was read in it.
func (x *Index) commit(next []byte, f func(tr *replicator.Transaction) error) error {
	tr, err := x.DB.OpenCheckedTransaction()
	if err != nil {
		return err
	}
	defer tr.Discard()
	stored, err := tr.Get([]byte(cursorKey), nil)
	switch {
	case err != nil && !errors.Is(err, leveldb.ErrNotFound):
		return err
	case !bytes.Equal(stored, x.stored):
		return ErrSuperseded
	}
	if err := f(tr); err != nil {
		return err
	}
	if err := tr.Put([]byte(cursorKey), next, nil); err != nil {
		return err
	}
	switch err := tr.Commit(); {
	case errors.Is(err, replicator.ErrChanged): // nobody writes there but consumers
		return ErrSuperseded
	case err != nil:
		return err
	}
	x.stored = next
	return nil
}

// flush brings the index up to date with the documents that wait, and stores a cursor along with that.
func (x *Index) flush(cursor replicator.Cursor) error {
	next := x.stored
	if !cursor.IsZero() {
		stored, err := cursor.MarshalBinary()
		if err != nil {
			return err
		}
		next = append(slices.Clone(x.stored[:8]), stored...)
	}
	err := x.commit(next, func(tr *replicator.Transaction) error {
		b := new(leveldb.Batch)
		for _, id := range slices.Sorted(maps.Keys(x.pending)) {
			old, err := tr.Get([]byte(keysOf+id), nil)
			if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
				return err
			}
			for key := range bytes.SplitSeq(old, []byte{'\n'}) {
				if len(key) > 0 {
					b.Delete(key)
				}
			}
			d := x.pending[id]
			if d == nil {
				b.Delete([]byte(keysOf + id))
				continue
			}
			keys := d.keys(id)
			for _, key := range keys {
				b.Put([]byte(key), nil)
			}
			b.Put([]byte(keysOf+id), []byte(strings.Join(keys, "\n")))
		}
		return tr.Write(b, nil)
	})
	clear(x.pending)
	return err
}

// clear empties the index: what of it has no document any more is not known. The cursor goes first, so
// that a crash in the midst of it begins again.
func (x *Index) clear() error {
	clear(x.pending)
	for left := true; left; {
		err := x.commit(x.stored[:8:8], func(tr *replicator.Transaction) error {
			b := new(leveldb.Batch)
			it := tr.NewIterator(Local, nil)
			defer it.Release()
			for left = false; it.Next(); {
				if string(it.Key()) == cursorKey {
					continue
				}
				if left = b.Len() == most; left {
					break
				}
				b.Delete(it.Key())
			}
			return errors.Join(it.Error(), tr.Write(b, nil))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// keys returns the index entries of a document, in order.
func (d *Document) keys(id string) []string {
	keys := map[string]bool{byAuthor + strings.ReplaceAll(d.Author, "\n", " ") + "\x00" + id: true}
	for _, word := range strings.FieldsFunc(strings.ToLower(d.Text), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		keys[byWord+word+"\x00"+id] = true
	}
	return slices.Sorted(maps.Keys(keys))
}

// Search returns the ids of the documents that have a word.
func (x *Index) Search(word string) ([]string, error) {
	return x.ids(byWord + strings.ToLower(word) + "\x00")
}

// By returns the ids of the documents of an author.
func (x *Index) By(author string) ([]string, error) { return x.ids(byAuthor + author + "\x00") }

func (x *Index) ids(prefix string) (ids []string, err error) {
	it := x.DB.NewIterator(util.BytesPrefix([]byte(prefix)), nil)
	defer it.Release()
	for it.Next() {
		ids = append(ids, string(it.Key()[len(prefix):]))
	}
	return ids, it.Error()
}

// Move copies an index with its cursor to another replica, which need not hold the same: there it goes
// on from the cursor.
func Move(from, to *replicator.DB) error {
	b := new(leveldb.Batch)
	it := from.NewIterator(Local, nil)
	defer it.Release()
	for it.Next() {
		b.Put(it.Key(), it.Value())
	}
	return errors.Join(it.Error(), to.Write(b, nil))
}

// Check compares the index with what a scan of all documents makes of them, and returns how many
// entries differ.
func (x *Index) Check() (differ int, err error) {
	want := map[string]bool{}
	docs := x.DB.NewIterator(util.BytesPrefix([]byte(documents)), nil)
	defer docs.Release()
	for docs.Next() {
		var d *Document
		if json.Unmarshal(docs.Value(), &d) == nil && d != nil {
			for _, key := range d.keys(strings.TrimPrefix(string(docs.Key()), documents)) {
				want[key] = true
			}
		}
	}
	it := x.DB.NewIterator(Local, nil)
	defer it.Release()
	for it.Next() {
		key := string(it.Key())
		if strings.HasPrefix(key, byAuthor) || strings.HasPrefix(key, byWord) {
			if !want[key] {
				differ++
			}
			delete(want, key)
		}
	}
	return differ + len(want), errors.Join(docs.Error(), it.Error())
}
