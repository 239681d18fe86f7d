package main

import (
	"errors"
	"time"

	"golang.org/x/perf/benchfmt"

	"github.com/level-replicator/replicator"
)

// conditional compares Read with Get, and PutIf with Put, on keys whose index entries fit into the cache. The two
// take turns, some keys at a time, so whatever else the machine does slows both.
func conditional() scenario {
	s := scenario{name: "Conditional", systems: []string{replicated}, title: "Writes on conditions, overwrites, uniform, values of 100 bytes, 1 writer"}
	s.rows = []row{
		{"Conditional/get", "op/s", "Get", aim{}},
		{"Conditional/read", "op/s", "Read", aim{}},
		{"Conditional/put", "op/s", "Put", aim{}},
		{"Conditional/putif", "op/s", "PutIf", aim{}},
		{"Conditional/read", "get", "Read, time of a Get", atMost(1.15)},
		{"Conditional/putif", "put", "PutIf, time of a Put", atMost(1.1)},
	}
	s.run = func(e *env) error {
		db, err := e.replicate(e.dir, alone())
		if err != nil {
			return err
		}
		return errors.Join(e.conditional(db), db.Close())
	}
	return s
}

func (e *env) conditional(db *replicator.DB) error {
	n := e.keys
	ks := newKeys(n, uint64(e.round))
	if err := load(db, ks, 100); err != nil {
		return err
	}
	if _, err := e.compacted(e.dir); err != nil {
		return err
	}
	const turn = 200
	var took [4]time.Duration
	var done [2]int
	v := newValues(100, 1)
	values := make([]replicator.Value, turn)
	for order, on := uniform(n, 2*n, uint64(e.round)+1), 0; len(order) > 0; on = 1 - on {
		some := order[:min(turn, len(order))]
		order = order[len(some):]
		began := time.Now()
		for i, k := range some {
			var err error
			if on == 0 {
				_, err = db.Get(ks.at(k), nil)
			} else {
				values[i], err = db.Read(ks.at(k))
			}
			if err != nil {
				return err
			}
		}
		read := time.Now()
		for i, k := range some {
			var err error
			if on == 0 {
				err = db.Put(ks.at(k), v.next(), nil)
			} else if err = db.PutIf(ks.at(k), v.next(), values[i].Seen, nil); errors.Is(err, replicator.ErrChanged) {
				err = nil // the key is in the turn twice
			}
			if err != nil {
				return err
			}
		}
		took[on] += read.Sub(began)
		took[2+on] += time.Since(read)
		done[on] += len(some)
	}
	for i, name := range []string{"Conditional/get", "Conditional/read", "Conditional/put", "Conditional/putif"} {
		each := took[i].Seconds() / float64(done[i%2])
		values := []benchfmt.Value{{Value: 1 / each, Unit: "op/s"}}
		if i%2 == 1 {
			values = append(values, benchfmt.Value{Value: each / (took[i-1].Seconds() / float64(done[0])), Unit: []string{"get", "put"}[i/2]})
		}
		e.emit(name, done[i%2], values...)
	}
	return nil
}
