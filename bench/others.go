package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/perf/benchfmt"
)

// Three nodes in one process on loopback: the smallest cluster that a quorum makes
// sense of. The other systems run as their documentation has it, without an fsync
// for each write, as goleveldb does by default.
const threeNodes = 3

var replicating = []string{replicated, natsKV, raftDB, crdt}

// others are the scenarios in which other systems do the same.
func others() []scenario {
	return []scenario{againstPuts(1), againstPuts(8), againstLatency(), againstFill(200_000), againstFill(1_000_000)}
}

// start starts three nodes of the system that is measured.
func (e *env) start(seen func(node int, key []byte)) (cluster, error) {
	switch e.system {
	case natsKV:
		return startNATS(e, threeNodes, seen)
	case raftDB:
		return startRaft(e, threeNodes, seen)
	case crdt:
		return startCRDT(e)
	}
	return newReplicas(e, threeNodes, "tcp", seen)
}

// againstPuts are puts at one node of three, until each has returned: in the replicator once
// it is written here, in NATS and raft once a majority has it. go-ds-crdt has no peers in
// it.
func againstPuts(writers int) scenario {
	name := fmt.Sprintf("Others/Put/writers=%d", writers)
	s := scenario{name: name, systems: replicating, title: "Put of new keys at one of three nodes, values of 100 bytes (go-ds-crdt: at one, alone)"}
	s.rows = []row{{name, "op/s", plural(writers, "writer"), aim{}}}
	s.run = func(e *env) error {
		c, err := e.start(nil)
		if err != nil {
			return err
		}
		return errors.Join(e.againstPuts(name, c, writers), c.close())
	}
	return s
}

func (e *env) againstPuts(name string, c cluster, writers int) error {
	ks := newKeys(e.keys, uint64(e.round))
	counts := make([]int, writers)
	began, used := time.Now(), cpu()
	err := share(writers, ks.len(), func(w, from, to int) error {
		v := newValues(100, uint64(w))
		for i := from; i < to && time.Since(began) < 3*e.synced; i++ {
			if err := c.put(ks.at(uint32(i)), v.next()); err != nil {
				return err
			}
			counts[w]++
		}
		return nil
	})
	took, used := time.Since(began), cpu()-used
	n := 0
	for _, c := range counts {
		n += c
	}
	e.emit(name, n, benchfmt.Value{Value: float64(n) / took.Seconds(), Unit: "op/s"}, benchfmt.Value{Value: used.Seconds() / float64(max(n, 1)), Unit: cpuUnit})
	return err
}

// againstLatency is the time from a put until all three nodes have applied it.
func againstLatency() scenario {
	const name = "Others/Latency"
	s := scenario{name: name, systems: []string{replicated, natsKV, raftDB}, title: "From Put to visible on all three nodes"}
	s.rows = []row{{name, "p50-sec", "p50", aim{}}, {name, "p99-sec", "p99", aim{}}}
	s.run = func(e *env) error { return e.latency(name, threeNodes, e.start) }
	return s
}

// joiner is a cluster that a further, empty node can join.
type joiner interface {
	cluster
	load(ks keys) error
	join() error // returns when the new node holds all
}

// againstFill is a new, empty node that gets all keys from two or three idle ones.
func againstFill(n int) scenario {
	name, large := "Others/Fill", n > full.fill
	if large {
		name += fmt.Sprintf("/keys=%d", n)
	}
	s := scenario{name: name, systems: []string{replicated, natsKV, raftDB}, large: large, title: fmt.Sprintf("An empty node joins and takes %s keys, values of 100 bytes", thousands(n))}
	s.rows = []row{{name, "sec", "seconds", aim{}}}
	s.run = func(e *env) error {
		c, err := e.start(nil)
		if err != nil {
			return err
		}
		j, ok := c.(joiner)
		if !ok {
			return errors.Join(errors.New("no node can join"), c.close())
		}
		keys := n * e.fill / full.fill
		if err := errors.Join(j.load(newKeys(keys, 1)), e.quiet()); err != nil {
			return errors.Join(err, c.close())
		}
		began := time.Now()
		err = j.join()
		e.emit(name, keys, benchfmt.Value{Value: time.Since(began).Seconds(), Unit: "sec"})
		return errors.Join(err, c.close())
	}
	return s
}
