package sim

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/link"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

const (
	scaleLeast   = 20 * time.Millisecond // MinInterval
	scaleMost    = 10 * time.Second      // MaxInterval
	scaleSilence = 2 * time.Second       // IdleTimeout
	scaleLife    = 5 * time.Minute
	scaleFanout  = 4

	scaleTrip   = time.Millisecond // a dial, or a session's question and its answer
	scaleHop    = time.Millisecond // a frame over a link
	scaleDialed = 5 * time.Second  // after which a dial that nobody answers fails
	scaleSilent = 10 * time.Second // after which a silent peer is cut off
)

// scaleWorld is a cluster in virtual time. Its replicas run the real state machine, sessions, links and
// rounds; of the processes around them it has what decides when they talk.
type scaleWorld struct {
	t      testing.TB
	rand   *rand.Rand
	now    time.Time
	nodes  []*scaleNode
	events scaleEvents
	order  uint64 // of the latest event

	writes   map[string]*scaleWrite // that are followed, by key
	sessions int                    // begun
}

// scaleWrite is a write that is followed.
type scaleWrite struct {
	at   time.Time
	took []time.Duration // until it was visible, at one replica after the other,
	by   []*scaleNode    // and which
}

type scaleEvent struct {
	at    time.Time
	order uint64
	do    func()
}

type scaleEvents []scaleEvent

func (q scaleEvents) Len() int { return len(q) }

func (q scaleEvents) Less(i, j int) bool {
	if c := q[i].at.Compare(q[j].at); c != 0 {
		return c < 0
	}
	return q[i].order < q[j].order
}

func (q scaleEvents) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

func (q *scaleEvents) Push(x any) { *q = append(*q, x.(scaleEvent)) }

func (q *scaleEvents) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = scaleEvent{}
	*q = (*q)[:last]
	return x
}

// at has something happen at a time.
func (w *scaleWorld) at(at time.Time, do func()) {
	w.order++
	heap.Push(&w.events, scaleEvent{at, w.order, do})
}

// step has the next thing happen.
func (w *scaleWorld) step() {
	e := heap.Pop(&w.events).(scaleEvent)
	w.now = e.at
	e.do()
}

// run lets some time pass.
func (w *scaleWorld) run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		w.step()
	}
	w.now = end
}

// runUntil lets time pass until something is so, and returns how much has.
func (w *scaleWorld) runUntil(limit time.Duration, what string, so func() bool) time.Duration {
	start := w.now
	for !so() {
		require.Less(w.t, w.now.Sub(start), limit, what)
		w.step()
	}
	return w.now.Sub(start)
}

// scaleNode is a replica in virtual time.
type scaleNode struct {
	w        *scaleWorld
	id       int
	image    simImage
	r        *replica.Replica
	velocity schedule.Velocity
	gossip   schedule.Rounds
	mesh     schedule.Mesh
	peers    []schedule.Candidate // by id
	vectors  []causal.Sum         // of peers, at the end of the last session with them
	dead     bool

	conns         []*scaleEnd // all that are open,
	links         []*scaleEnd // and of them the links, but for those that another with the same peer replaces
	small, enough bool

	next   time.Time // when it has something to do by itself
	rounds int
	bytes  int64 // that it sent
	copies int   // of versions that it was sent
}

func newScaleWorld(t testing.TB, n int, seed uint64) *scaleWorld {
	w := &scaleWorld{t: t, rand: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_800_000_000, 0), writes: map[string]*scaleWrite{}}
	for i := range n {
		x := &scaleNode{w: w, id: i, peers: make([]schedule.Candidate, n), vectors: make([]causal.Sum, n), mesh: schedule.Mesh{Fanout: scaleFanout}}
		x.gossip.Config = schedule.Config{Least: scaleLeast, Most: scaleMost, Fanout: scaleFanout, Rand: w.rand}
		for j := range x.peers {
			x.peers[j] = schedule.Candidate{Answers: i != j, Busy: i == j, Tried: true}
		}
		x.r = replica.New(replica.Config{
			Store: x, Now: func() time.Time { return w.now }, Resolve: replica.HighestClock, MaxKey: 64, MaxValue: 1 << 10,
			MaxSkew: time.Hour, TombstoneTTL: time.Hour, PeerTTL: time.Hour,
			Draw: func() (o causal.Origin) {
				binary.BigEndian.PutUint64(o[:8], w.rand.Uint64())
				binary.BigEndian.PutUint64(o[8:], w.rand.Uint64())
				return o
			},
		})
		b, err := x.r.Open("")
		require.NoError(t, err)
		x.image = x.image.with(simPairs(b))
		x.survey()
		w.nodes = append(w.nodes, x)
		first := x.gossip.Begin(w.now, false) // as if a round had been held some time ago
		x.gossip.End(w.now, first, 0, 0, time.Duration(w.rand.Int64N(int64(scaleMost))))
		x.next = x.gossip.Next()
		w.at(x.next, x.wake)
	}
	return w
}

// A replica is its own store in memory, in which nothing goes wrong.
func (x *scaleNode) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	return (&simReader{image: x.image}).Get(key, ro)
}

func (x *scaleNode) NewIterator(g *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return (&simReader{image: x.image}).NewIterator(g, ro)
}

func (x *scaleNode) Snapshot() (store.Snapshot, error) { return &simReader{image: x.image}, nil }

// It is the host of its sessions as well.

func (x *scaleNode) With(f func(r *replica.Replica)) { f(x.r) }

func (x *scaleNode) Commit(stage func(t *replica.Txn) error) error {
	_, err := x.commit(stage, false)
	return err
}

func (x *scaleNode) Addresses() []string { return nil }

func (x *scaleNode) Learn([]string) {}

func (x *scaleNode) EnterPull(causal.Origin, int64) session.SkipReason { return session.NotSkipped }

func (x *scaleNode) LeavePull(causal.Origin) {}

func (x *scaleNode) commit(stage func(t *replica.Txn) error, local bool) (changes int, err error) {
	t := x.r.Begin()
	if err := stage(t); err != nil || t.Empty() {
		return 0, err
	}
	b := t.Finish()
	x.image = x.image.with(simPairs(b))
	x.r.Apply(t, t.Sync)
	if changes = len(t.Changes); changes == 0 {
		return 0, nil
	}
	x.velocity.Add(x.w.now, changes)
	for i := range t.Changes {
		if wr := x.w.writes[string(t.Changes[i].Key)]; wr != nil && !local {
			wr.took, wr.by = append(wr.took, x.w.now.Sub(wr.at)), append(wr.by, x)
		}
	}
	for _, e := range x.links {
		e.local, e.remote = e.local || local, e.remote || !local
	}
	switch {
	case x.enough:
	case local:
		x.gossip.LocalChange()
	default:
		x.gossip.RemoteChange(x.w.now, x.gossip.Few(x.answering()))
	}
	return changes, nil
}

// put has a replica write something, which is followed.
func (x *scaleNode) put(key, value string) *scaleWrite {
	wr := &scaleWrite{at: x.w.now}
	x.w.writes[key] = wr
	_, err := x.commit(func(t *replica.Txn) error {
		return t.Put([]store.Write{{Key: []byte(key), Value: []byte(value), Deleted: false}})
	}, true)
	require.NoError(x.w.t, err)
	x.act()
	return wr
}

func (x *scaleNode) answering() (n int) {
	for i := range x.peers {
		n += int(store.Btoi(x.peers[i].Answers))
	}
	return n
}

func (x *scaleNode) survey() {
	all := true
	for i := range x.peers {
		all = all && (!x.peers[i].Answers || x.peers[i].Linked)
	}
	x.small = x.mesh.Small(x.answering())
	x.enough = x.mesh.Enough(len(x.links), all, x.small)
}

// act does what is due, and notes when something will be again.
func (x *scaleNode) act() {
	if x.dead {
		return
	}
	for _, e := range slices.Clone(x.conns) {
		if e.link != nil {
			e.keep()
		}
	}
	if !x.gossip.Next().After(x.w.now) {
		x.round()
	}
	next := x.gossip.Next()
	for _, e := range x.conns {
		if e.link != nil && e.link.Next().Before(next) {
			next = e.link.Next()
		}
	}
	if next.Before(x.w.now) {
		next = x.w.now
	}
	if next.Before(x.next) || !x.next.After(x.w.now) {
		x.next = next
		x.w.at(next, x.wake)
	}
}

func (x *scaleNode) wake() {
	if x.next.Equal(x.w.now) {
		x.act()
	}
}

func (x *scaleNode) round() {
	w := x.w
	x.rounds++
	round := x.gossip.Begin(w.now, x.gossip.Few(x.answering()))
	next := x.successor()
	for i := range x.peers {
		x.peers[i].Current = x.vectors[i] == x.r.Known.VectorSum
		x.peers[i].Next = round.Changed && w.nodes[i].r.Self == next
	}
	round.Live = min(round.Live, x.mesh.Sessions(len(x.links), x.small))
	picked, _ := x.gossip.Pick(x.peers, round.Live, 0, w.now, func(i int) bool { return round.Skips(&x.peers[i], w.now) })
	for _, i := range picked {
		x.dial(w.nodes[i])
	}
	news := w.now.Sub(x.velocity.Last()) < scaleSilence
	pause := x.gossip.Pause(x.enough, news, x.velocity.Pause(w.now, scaleLeast, scaleMost))
	x.gossip.End(w.now, round, len(picked), 0, pause)
}

// dial begins a session.
func (x *scaleNode) dial(y *scaleNode) {
	w := x.w
	w.sessions++
	x.peers[y.id].Busy = true
	w.at(w.now.Add(scaleTrip), func() {
		if x.dead || y.dead {
			w.at(w.now.Add(scaleDialed), func() { x.failed(y) })
			return
		}
		a, b := newScaleEnd(x, y, true), newScaleEnd(y, x, false)
		a.other, b.other = b, a
		y.peers[x.id].Calling = true
		a.session.Start()
		a.talk()
	})
}

// failed notes that a dial has failed.
func (x *scaleNode) failed(y *scaleNode) {
	if !x.dead {
		x.peers[y.id].Busy, x.peers[y.id].Answers = false, false
		x.survey()
	}
}

// kill ends a process. Its peers notice at once or, if it falls silent, after some time.
func (x *scaleNode) kill(silent bool) {
	x.dead = true
	notice := x.w.now.Add(scaleHop)
	if silent {
		notice = x.w.now.Add(scaleSilent)
	}
	for _, e := range slices.Clone(x.conns) {
		e.over = true
		x.w.at(notice, e.other.broke)
	}
	x.links, x.conns = nil, nil
}

// scaleEnd is one end of a connection.
type scaleEnd struct {
	node, peer *scaleNode
	other      *scaleEnd
	dialed     bool
	session    *session.Session
	link       *link.Link // nil: it has not become one
	over       bool
	served     int // versions that were sent

	local, remote bool // changes since the link last looked
}

func newScaleEnd(x, peer *scaleNode, dialed bool) *scaleEnd {
	e := &scaleEnd{node: x, peer: peer, dialed: dialed}
	p := session.Params{PageSize: 64 << 10, BatchSize: 1 << 20, MaxValue: 1 << 10, MaxKey: 64, Stay: x.mayStay}
	if dialed {
		p.CachedPeer = peer.r.Self
	}
	e.session = session.New(x, dialed, p)
	x.conns = append(x.conns, e)
	return e
}

// successor is the replica that this one tells first of all.
func (x *scaleNode) successor() causal.Origin {
	ring := causal.NewRing(x.r.Self)
	for i, y := range x.w.nodes {
		if x.peers[i].Answers {
			ring.Add(y.r.Self)
		}
	}
	return ring.Next()
}

func (x *scaleNode) mayStay(o causal.Origin) (may, news bool) {
	linked := slices.ContainsFunc(x.links, func(e *scaleEnd) bool { return e.link.Peer() == o })
	return !linked && x.mesh.Room(len(x.links)), x.w.now.Sub(x.velocity.Last()) < scaleSilence
}

// send sends frames, which arrive together.
func (e *scaleEnd) send(frames []session.Frame, takes time.Duration) {
	if len(frames) == 0 {
		return
	}
	for _, f := range frames {
		e.node.bytes += int64(session.FrameHead + len(f.Payload))
	}
	n := e.session.Result().Served
	e.peer.copies += n - e.served
	e.served = n
	frames = slices.Clone(frames)
	w := e.node.w
	w.at(w.now.Add(takes), func() { e.other.receive(frames) })
}

func (e *scaleEnd) receive(frames []session.Frame) {
	for _, f := range frames {
		if e.over {
			return
		}
		if e.link != nil {
			require.NoError(e.node.w.t, e.link.Receive(e.node.w.now, f.Kind, f.Payload))
			continue
		}
		require.NoError(e.node.w.t, e.session.Receive(f.Kind, f.Payload))
		e.talk()
	}
	e.node.act()
}

// talk sends what a session has to say until it waits for the peer.
func (e *scaleEnd) talk() {
	for s := e.session; ; {
		e.send(s.Frames(), scaleTrip/2)
		if !s.More() {
			break
		}
		require.NoError(e.node.w.t, s.Produce())
	}
	if e.session.Stream() != nil || e.session.Done() {
		e.ended()
	}
}

// ended is the end of a session that went well. Its connection may have become a link.
func (e *scaleEnd) ended() {
	x := e.node
	res, p := e.session.Result(), &x.peers[e.peer.id]
	if e.dialed {
		p.Busy, p.Reached = false, x.w.now
	} else {
		p.Calling, p.Came = false, x.w.now
	}
	x.vectors[e.peer.id] = res.VectorSum
	if s := e.session.Stream(); s != nil {
		e.enter(s)
	} else {
		e.close()
	}
	if res.VectorSum != x.r.Known.VectorSum {
		x.gossip.LocalChange()
	}
	x.survey()
}

// Small, Linked and Receiving are [link.Links].
func (x *scaleNode) Small() bool { return x.small }

func (x *scaleNode) Linked(o causal.Origin) bool {
	return slices.ContainsFunc(x.links, func(e *scaleEnd) bool { return e.link.Peer() == o })
}

func (x *scaleNode) Receiving() bool {
	return slices.ContainsFunc(x.links, func(e *scaleEnd) bool { return e.link.Progress().Pulling })
}

// enter makes a link. Of two with the same peer that one stays which the lesser origin dialed.
func (e *scaleEnd) enter(s *session.Stream) {
	x := e.node
	config := schedule.PaceConfig{Silence: scaleSilence, Life: scaleLife}
	e.link = link.New(s, config, x, x.w.now, x.w.rand.Float64())
	e.local = true
	if i := slices.IndexFunc(x.links, func(o *scaleEnd) bool { return o.peer == e.peer }); i >= 0 {
		if e.link.Dialer().Compare(x.links[i].link.Dialer()) >= 0 {
			e.link.Leave()
			return
		}
		x.links[i].link.Leave()
		x.links = slices.Delete(x.links, i, i+1)
	}
	x.links = append(x.links, e)
	x.peers[e.peer.id].Linked = true
}

// keep does what is due over a link.
func (e *scaleEnd) keep() {
	w := e.node.w
	for sent := true; sent && !e.over; {
		if e.local {
			e.link.LocalChange(w.now)
		}
		if e.remote {
			e.link.RemoteChange(w.now)
		}
		e.local, e.remote = false, false
		if e.link.Overdue(w.now) {
			e.broke()
			return
		}
		if e.link.Step(w.now); e.link.More() {
			require.NoError(w.t, e.link.Produce())
		}
		frames := e.link.Frames()
		sent = len(frames) > 0 || e.link.More()
		e.send(frames, scaleHop)
		e.link.Wrote(w.now)
		if e.link.Done() {
			e.leave()
		}
	}
}

// leave is the end of a link.
func (e *scaleEnd) leave() {
	x := e.node
	x.links = slices.DeleteFunc(x.links, func(o *scaleEnd) bool { return o == e })
	x.peers[e.peer.id].Linked = slices.ContainsFunc(x.links, func(o *scaleEnd) bool { return o.peer == e.peer })
	x.vectors[e.peer.id] = e.link.Known().VectorSum
	e.close()
	x.survey()
	if x.vectors[e.peer.id] != x.r.Known.VectorSum && !x.enough {
		x.gossip.LocalChange()
	}
}

// broke is what happens when a connection breaks.
func (e *scaleEnd) broke() {
	x := e.node
	if e.over || x.dead {
		return
	}
	if e.link != nil {
		require.NoError(x.w.t, e.link.Abandon())
		e.leave()
	} else {
		require.NoError(x.w.t, e.session.Abandon())
		if e.close(); e.dialed {
			x.peers[e.peer.id].Busy, x.peers[e.peer.id].Answers = false, false
		} else {
			x.peers[e.peer.id].Calling = false
		}
		x.survey()
	}
	x.act()
}

func (e *scaleEnd) close() {
	e.over = true
	e.node.conns = slices.DeleteFunc(e.node.conns, func(o *scaleEnd) bool { return o == e })
}

// cut breaks a connection at both ends.
func (e *scaleEnd) cut() {
	e.broke()
	e.other.broke()
}

// load has writes happen at a rate for some time, at replicas that a function chooses, and returns them.
func (w *scaleWorld) load(span time.Duration, perSecond int, writer func() *scaleNode) (writes []*scaleWrite) {
	for i := range int(span.Seconds() * float64(perSecond)) {
		w.at(w.now.Add(time.Duration(i)*time.Second/time.Duration(perSecond)), func() {
			x := writer()
			for x.dead {
				x = writer()
			}
			writes = append(writes, x.put(fmt.Sprintf("load%d", len(w.writes)), string(Incompressible(w.rand.Uint64(), 200))))
		})
	}
	w.run(span)
	return writes
}
