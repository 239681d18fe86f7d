package main

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/perf/benchfmt"
)

// burst has many replicas each write one key at the same moment.
func burst(count int) scenario {
	s := scenario{
		name: fmt.Sprintf("Burst/replicas=%d", count), systems: []string{replicated}, large: count > 50,
		title: fmt.Sprintf("%d replicas in one process each put one key at the same moment", count),
	}
	s.rows = []row{
		{s.name, "sec", "until all have all", aim{}},
		{s.name, "sessions", "sessions held until then", aim{}},
		{s.name, "cpu-sec", "processor time until then", aim{}},
		{s.name, "sent-B", "bytes sent until then", aim{}},
		{s.name, "known", "versions received though known", aim{}},
	}
	s.run = func(e *env) error {
		nodes := e.burst[count]
		a := &countdown{none: make(chan time.Time, 1)}
		c, err := newReplicas(e, nodes, "tcp", a.seen)
		if err != nil {
			return err
		}
		return errors.Join(e.bursting(s.name, c, a), c.close())
	}
	return s
}

// countdown counts what is still to be seen, each key at each replica.
type countdown struct {
	left atomic.Int64
	none chan time.Time
}

func (a *countdown) seen(int, []byte) {
	if a.left.Add(-1) == 0 {
		a.none <- time.Now()
	}
}

// bursting reports the median of several bursts, and ends early with one that does not end.
func (e *env) bursting(name string, c *replicas, a *countdown) error {
	size := len(c.dbs) * keySize
	ks := newKeys(len(c.dbs)*e.bursts, uint64(e.round))
	figures, units := map[string][]float64{}, []string{}
	for i := 0; i < e.bursts && figures[unseenUnit] == nil; i++ {
		if err := e.wait(e.calm); err != nil {
			return err
		}
		values, err := e.burstOf(ks[i*size:(i+1)*size], c, a)
		if err != nil {
			return err
		}
		for _, v := range values {
			if figures[v.Unit] == nil {
				units = append(units, v.Unit)
			}
			figures[v.Unit] = append(figures[v.Unit], v.Value)
		}
	}
	var medians []benchfmt.Value
	for _, unit := range units {
		s, _ := spreadOf(figures[unit])
		medians = append(medians, benchfmt.Value{Value: s.median, Unit: unit})
	}
	e.emit(name, e.bursts, medians...)
	return nil
}

// burstOf puts a key at each replica and waits a minute at most, which then counts as the time
// that it took.
func (e *env) burstOf(ks keys, c *replicas, a *countdown) (values []benchfmt.Value, err error) {
	a.left.Store(int64(len(c.dbs) * len(c.dbs)))
	from, sessions := usageOf(c), c.sessions.Load()
	err = each(len(c.dbs), func(i int) error { return c.write(i, ks.at(uint32(i)), newValues(100, uint64(i)).next()) })
	if err != nil {
		return nil, err
	}
	emit := func(v float64, unit string) { values = append(values, benchfmt.Value{Value: v, Unit: unit}) }
	select {
	case at := <-a.none:
		emit(at.Sub(from.at).Seconds(), "sec")
	case <-time.After(time.Minute):
		emit(time.Since(from.at).Seconds(), "sec")
		emit(float64(a.left.Load()), unseenUnit)
	case <-e.ctx.Done():
		return nil, e.ctx.Err()
	}
	held, to := c.sessions.Load()-sessions, usageOf(c)
	emit(float64(held), "sessions")
	emit((to.cpu - from.cpu).Seconds(), "cpu-sec")
	emit(float64(to.sent-from.sent), "sent-B")
	emit(float64(to.duplicates-from.duplicates), "known")
	return values, nil
}
