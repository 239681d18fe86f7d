package replicator

import (
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// StoreOptions returns goleveldb options that suit replication: for each key there are three
// records where a bare handle has one, two of them at random places, so what costs most with
// goleveldb's defaults is compaction. A database may be opened with these options and without
// them in turn.
//
// They are a fresh copy, to be changed as needed. In memory they take up to 72 MiB: two write
// buffers of 16 MiB, which take up to 28 MiB each when they are full, and a block cache of
// 16 MiB. On a small machine set WriteBuffer to 4 MiB and BlockCacheCapacity to 8 MiB,
// goleveldb's defaults. docs/operations.md says what each option costs and what it gains.
func StoreOptions() *opt.Options {
	return &opt.Options{
		// A memtable four times as large makes a quarter of the tables that have to be merged.
		WriteBuffer: 16 * opt.MiB,

		// The first level takes what four memtables come to; with less, each merge of level 0
		// would push all of it further down.
		CompactionTotalSize: 64 * opt.MiB,
		CompactionTableSize: 4 * opt.MiB,

		// Above the first number of tables in level 0 each write is held up for 1 ms, above the second all
		// wait. With the filter a lookup can pass by them, so there may be more before it comes to that.
		WriteL0SlowdownTrigger: 16,
		WriteL0PauseTrigger:    24,

		// A lookup reads one block instead of one of each level, and none for a key that is
		// missing. Tables that were written without the filter are read without it.
		Filter:             filter.NewBloomFilter(10),
		BlockCacheCapacity: 16 * opt.MiB,

		// With the filter a lookup that passes by a table costs nothing, so nothing is gained
		// by compacting that table.
		DisableSeeksCompaction: true,

		// The pool gives buffers of 2 MiB to index blocks of 20 KiB, and the block cache
		// counts them as that.
		DisableBufferPool: true,
	}
}
