package replicator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/level-replicator/replicator"
)

// Two handlers read a counter, think, and write. With Put the second replaces what the first wrote, which it has
// never seen. With PutIf it is refused, and may read again.
func ExampleDB_PutIf() {
	db := replica(replicator.Options{})
	defer db.Close()
	key := []byte("visits")
	next := func(v []byte) []byte {
		n, err := strconv.Atoi(string(v))
		check(err)
		return strconv.AppendInt(nil, int64(n+1), 10)
	}

	check(db.Put(key, []byte("5"), nil))
	first, err := db.Get(key, nil)
	check(err)
	second, err := db.Get(key, nil)
	check(err)
	check(db.Put(key, next(first), nil))
	check(db.Put(key, next(second), nil))
	v, err := db.Read(key)
	check(err)
	fmt.Printf("Put: 5 and two visits are %s\n", v.Bytes)

	check(db.Put(key, []byte("5"), nil))
	one, err := db.Read(key)
	check(err)
	two, err := db.Read(key)
	check(err)
	check(db.PutIf(key, next(one.Bytes), one.Seen, nil))
	err = db.PutIf(key, next(two.Bytes), two.Seen, nil)
	fmt.Println("PutIf:", errors.Is(err, replicator.ErrChanged))
	two, err = db.Read(key)
	check(err)
	check(db.PutIf(key, next(two.Bytes), two.Seen, nil))
	v, err = db.Read(key)
	check(err)
	fmt.Printf("PutIf: 5 and two visits are %s\n", v.Bytes)
	// Output:
	// Put: 5 and two visits are 6
	// PutIf: true
	// PutIf: 5 and two visits are 7
}

// A counter that all replicas raise, also while they are cut off: what each of them has counted, by name. Update
// sees to it that no write of this replica is lost, and the resolver that none is of two that conflict.
func ExampleDB_Update() {
	type counts map[string]int
	decode := func(b []byte) counts {
		c := counts{}
		if b != nil {
			check(json.Unmarshal(b, &c))
		}
		return c
	}
	encode := func(c counts) []byte {
		b, err := json.Marshal(c)
		check(err)
		return b
	}
	greatest := func(_ []byte, a, b replicator.Version) replicator.Version {
		x := decode(a.Value)
		for name, n := range decode(b.Value) {
			x[name] = max(x[name], n)
		}
		return replicator.Version{Value: encode(x)}
	}
	visit := func(db *replicator.DB) {
		check(db.Update(context.Background(), []byte("visits"), func(v replicator.Value) ([]byte, bool, error) {
			c := decode(v.Bytes)
			c[db.Status().Name]++
			return encode(c), true, nil
		}))
	}

	a := replica(replicator.Options{Name: "a", Resolver: greatest})
	defer a.Close()
	b := replica(replicator.Options{Name: "b", Resolver: greatest})
	defer b.Close()
	for range 3 {
		visit(a)
		visit(b) // which has not heard of a
	}
	check(b.AddPeer(address(a)))
	check(b.Sync(context.Background()))
	visit(b)
	check(b.Sync(context.Background()))
	for _, db := range []*replicator.DB{a, b} {
		v, err := db.Read([]byte("visits"))
		check(err)
		total := 0
		for _, n := range decode(v.Bytes) {
			total += n
		}
		fmt.Println(total, v.Conflict)
	}
	// Output:
	// 7 false
	// 7 false
}

// A set whose members are added one by one. An error of the function leaves the key as it is.
func ExampleDB_Update_set() {
	db := replica(replicator.Options{})
	defer db.Close()
	errMember := errors.New("it is a member already")
	add := func(member string) error {
		return db.Update(context.Background(), []byte("team"), func(v replicator.Value) ([]byte, bool, error) {
			members := strings.Fields(string(v.Bytes))
			if slices.Contains(members, member) {
				return nil, false, errMember
			}
			return []byte(strings.Join(append(members, member), " ")), true, nil
		})
	}
	remove := func(member string) error {
		return db.Update(context.Background(), []byte("team"), func(v replicator.Value) ([]byte, bool, error) {
			members := slices.DeleteFunc(strings.Fields(string(v.Bytes)), func(m string) bool { return m == member })
			return []byte(strings.Join(members, " ")), len(members) > 0, nil // an empty set is deleted
		})
	}
	check(add("ada"))
	check(add("grace"))
	fmt.Println(add("ada"))
	v, err := db.Read([]byte("team"))
	check(err)
	fmt.Println(string(v.Bytes))
	check(remove("ada"))
	check(remove("grace"))
	_, err = db.Read([]byte("team"))
	fmt.Println(err == leveldb.ErrNotFound)
	// Output:
	// it is a member already
	// ada grace
	// true
}

// The last seat on the plane. At one replica it is sold once. Two replicas that are cut off may both sell it; then
// both sales are kept, the same one is shown everywhere, and somebody can tell the other passenger.
func ExampleDB_WriteIf() {
	earliest := func(_ []byte, a, b replicator.Version) replicator.Version {
		if b.Time.Before(a.Time) || b.Time.Equal(a.Time) && string(b.Value) < string(a.Value) {
			return b
		}
		return a
	}
	sell := func(db *replicator.DB, passenger string) error {
		batch := new(leveldb.Batch)
		batch.Put([]byte("seat/12A"), []byte(passenger))
		batch.Put([]byte("ticket/"+passenger), []byte("12A"))
		return db.WriteIf(batch, []replicator.Cond{
			{Key: []byte("seat/12A")},   // nobody has it
			{Key: []byte("flight/off")}, // and it has not left
		}, nil)
	}

	a := replica(replicator.Options{Resolver: earliest})
	defer a.Close()
	b := replica(replicator.Options{Resolver: earliest})
	defer b.Close()
	fmt.Println("a sells to Ada:", sell(a, "Ada"))
	fmt.Println("a sells to Bob:", sell(a, "Bob"))
	fmt.Println("b sells to Cy:", sell(b, "Cy")) // it has not heard of Ada
	check(b.AddPeer(address(a)))
	check(b.Sync(context.Background()))
	for c, err := range b.Conflicts(context.Background()) {
		check(err)
		for _, v := range c.Versions {
			if string(v.Value) != string(c.Value) {
				fmt.Printf("%s goes to %s; %s must be told\n", c.Key, c.Value, v.Value)
			}
		}
	}
	// Output:
	// a sells to Ada: <nil>
	// a sells to Bob: replicator: a key has changed since it was read: "seat/12A"
	// b sells to Cy: <nil>
	// seat/12A goes to Ada; Cy must be told
}

// A transaction that depends on all that it has read: here, that there is room.
func ExampleDB_OpenCheckedTransaction() {
	db := replica(replicator.Options{})
	defer db.Close()
	book := func(who string, between func()) error {
		tr, err := db.OpenCheckedTransaction()
		check(err)
		defer tr.Discard() // does nothing after Commit
		guests := 0
		it := tr.NewIterator(util.BytesPrefix([]byte("guest/")), nil)
		for it.Next() {
			guests++
		}
		it.Release()
		check(it.Error())
		if guests >= 2 {
			return errors.New("no room")
		}
		between()
		check(tr.Put([]byte("guest/"+who), nil, nil))
		return tr.Commit()
	}
	check(book("Ada", func() {}))
	err := book("Bob", func() { check(book("Cy", func() {})) })
	fmt.Println(err)
	fmt.Println(book("Bob", func() {}))
	// Output:
	// replicator: a key has changed since it was read: "guest/Cy"
	// no room
}
