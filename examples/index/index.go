package main

import (
	"bytes"
	"context"
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
// change does to the index and the cursor behind that change are one batch, so each change counts
// exactly once, whenever the process is killed.
var Local = util.BytesPrefix([]byte("index/"))

const (
	byAuthor  = "index/author/" // author, 0, id → nothing
	byWord    = "index/word/"   // word, 0, id → nothing
	keysOf    = "index/of/"     // id → the keys above that the document has
	cursorKey = "index/cursor"
)

// Index is an index over the documents of a replica, by author and by word.
type Index struct {
	DB *replicator.DB

	pending map[string]*Document // changed since the last batch; nil: deleted
}

// most is how many documents wait for a cursor, which comes when all that one state of the database has
// was yielded. Beyond that they are indexed without one, and again after a crash.
const most = 1000

// Run keeps the index until ctx ends, or as long as there is something to be indexed if once is set.
func (x *Index) Run(ctx context.Context, once bool) error {
	var since replicator.Cursor
	switch stored, err := x.DB.Get([]byte(cursorKey), nil); {
	case err == nil:
		if err := since.UnmarshalBinary(stored); err != nil {
			return err
		}
	case !errors.Is(err, leveldb.ErrNotFound):
		return err
	}
	x.pending = map[string]*Document{}
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

// flush brings the index up to date with the documents that wait, and stores a cursor along with that.
func (x *Index) flush(cursor replicator.Cursor) error {
	b := new(leveldb.Batch)
	for _, id := range slices.Sorted(maps.Keys(x.pending)) {
		old, err := x.DB.Get([]byte(keysOf+id), nil)
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
	if !cursor.IsZero() {
		stored, err := cursor.MarshalBinary()
		if err != nil {
			return err
		}
		b.Put([]byte(cursorKey), stored)
	}
	clear(x.pending)
	return x.DB.Write(b, nil)
}

// clear empties the index: what of it has no document any more is not known. The cursor goes first, so
// that a crash in the midst of it begins again.
func (x *Index) clear() error {
	clear(x.pending)
	b := new(leveldb.Batch)
	b.Delete([]byte(cursorKey))
	it := x.DB.NewIterator(Local, nil)
	defer it.Release()
	for it.Next() {
		if b.Delete(it.Key()); b.Len() >= most {
			if err := x.DB.Write(b, nil); err != nil {
				return err
			}
			b.Reset()
		}
	}
	return errors.Join(it.Error(), x.DB.Write(b, nil))
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
