// Package testdb reads databases for tests.
package testdb

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Reader is a database, replicated or not, or a snapshot or a transaction of one.
type Reader interface {
	NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
}

// Contents returns all keys of a database with their values.
func Contents(t testing.TB, db Reader) map[string]string {
	t.Helper()
	m := map[string]string{}
	it := db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		m[string(it.Key())] = string(it.Value())
	}
	require.NoError(t, it.Error())
	return m
}
