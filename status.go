package replicator

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/syndtr/goleveldb/leveldb"
)

// Status is what a replica knows of itself and of its peers at one moment. It
// marshals to JSON, with durations in nanoseconds and without times that are zero.
type Status struct {
	// The replica.
	Time    time.Time `json:"time"` // when it was taken
	Name    string    `json:"name"`
	Cluster string    `json:"cluster"`
	Origin  Origin    `json:"origin"` // of this opening
	Addr    string    `json:"addr"`   // the listener's

	// Whether it works.
	Ready    bool   `json:"ready"` // the first attempt to replicate is over
	ReadOnly bool   `json:"readOnly"`
	Failed   string `json:"failed,omitempty"`  // why writes are refused, if the store failed
	Starved  string `json:"starved,omitempty"` // why writes fail for now, if the store finds no file handle; it goes on by itself
	Rewound  bool   `json:"rewound,omitempty"` // the store was opened at an older state than it was closed in, and what was known then is not all known again

	// What it holds. While it is counting that, the digest is zero, and the next three are of what has been counted.
	Counting      bool          `json:"counting,omitempty"` // see [DB.Counted]
	Digest        Digest        `json:"digest"`
	Keys          int64         `json:"keys"`          // keys with a value
	Tombstones    int64         `json:"tombstones"`    // deleted keys that are still remembered
	Conflicts     int64         `json:"conflicts"`     // keys in conflict
	VersionVector []VectorEntry `json:"versionVector"` // by origin
	NotDurable    int64         `json:"notDurable"`    // writes known here that a power failure here could take, as far as is known

	// Changes, and how they spread.
	Velocity float64       `json:"velocity"` // changes per second, decaying with a half-life of 5 s
	Recent   []int64       `json:"recent"`   // changes in each of the last 60 whole seconds, the latest last
	Interval time.Duration `json:"interval"` // between rounds, at this velocity; MaxInterval while live sessions carry the changes
	Live     int           `json:"live"`     // sessions whose connection stays open, over which news is pushed
	Delays   []Delay       `json:"delays"`   // replication delay, by origin; see also Delay

	// Totals since the opening.
	Sessions   int64 `json:"sessions"` // one that goes on live counts once
	Pulled     int64 `json:"pulled"`   // versions taken from peers, pushed ones included
	Served     int64 `json:"served"`   // versions sent to peers, pushed ones included
	BytesIn    int64 `json:"bytesIn"`  // on the network, so with what TLS adds
	BytesOut   int64 `json:"bytesOut"`
	Pushes     int64 `json:"pushes"`     // that went out in live sessions
	Duplicates int64 `json:"duplicates"` // versions that were pushed to this replica and known here; Pulled does not count them
	Mismatches int64 `json:"mismatches"` // versions that had to come back after a digest differed

	// What keeps it from replicating all.
	Alone    bool  `json:"alone"`    // every configured address leads to this replica itself, and nobody else is there
	HeldBack int64 `json:"heldBack"` // versions that peers hold and that are not taken here: their value is above MaxValue, or their key above MaxKey
	Largest  int64 `json:"largest"`  // of those, the size of the largest value

	// Peers, members, and work under way.
	Peers    []PeerStatus   `json:"peers"`    // by address
	Refusals []Refusal      `json:"refusals"` // connections turned away lately, at most 33
	Blockers []PurgeBlocker `json:"blockers"` // members that hold back the forgetting of deletions
	Work     []Progress     `json:"work"`     // long work under way
}

// VectorEntry is the entry of one origin in a replica's version vector. The replica
// holds every write of the origin up to Seq, or one that superseded it. Those up to
// Durable are on its disk.
type VectorEntry struct {
	Origin  Origin `json:"origin"`
	Seq     uint64 `json:"seq"`
	Durable uint64 `json:"durable"`
	Own     bool   `json:"own"` // an opening of this database
}

// PeerStatus is what a replica knows of a peer. What the peer holds, claims and has
// on disk is as it reported when last asked, in a session; what it took from us since
// counts where that is certain. In a live session it reports by itself what it claims and has on
// disk, at the latest 0.2 s after a change, and in a small cluster after 25 ms. What it holds it
// reports only when a session begins: until the next round Agrees is false if anything has changed.
type PeerStatus struct {
	// Who the peer is, and how sessions with it end.
	Addr     string     `json:"addr"`             // where it is dialed; of one without an address of its own, where it comes from
	NoAddr   bool       `json:"noAddr,omitempty"` // it dials us, others may come from the same address, and it is known by its origin
	Name     string     `json:"name"`
	Origin   Origin     `json:"origin"`
	Source   PeerSource `json:"source"` // how its address became known
	State    PeerState  `json:"state"`
	Live     time.Time  `json:"live,omitzero"`      // since when there is a live session with it; zero: there is none
	Last     time.Time  `json:"last,omitzero"`      // end of the last good session; of a live one, when something last went over it
	Failures int        `json:"failures"`           // sessions in a row
	Error    string     `json:"error,omitempty"`    // of the last session, if it failed; or why nothing was pulled, if nothing is written here
	FailedOp PeerOp     `json:"failedOp,omitempty"` // the part of the session in which Error occurred
	Next     time.Time  `json:"next,omitzero"`      // not dialed before
	Moved    bool       `json:"moved,omitempty"`    // who answered here was reopened, and has answered elsewhere since

	// What it holds.
	Counting   bool          `json:"counting,omitempty"` // it was counting that when last asked, and its digest was not known
	Agrees     bool          `json:"agrees"`             // it held exactly what we do now
	Differs    bool          `json:"differs"`            // it claimed exactly what we do now, and held something else: the next session repairs that
	Agreed     time.Time     `json:"agreed,omitzero"`    // when it was last found to hold exactly what we held then
	Digest     Digest        `json:"digest"`             // of what it held
	Lag        int64         `json:"lag"`                // writes known here that it does not claim
	LagTime    time.Duration `json:"lagTime"`            // if it lags: at most so long ago was the oldest of them known here
	Ahead      int64         `json:"ahead"`              // writes it claims that are not known here
	NotDurable int64         `json:"notDurable"`         // writes known here that it did not report to be on its disk

	// Totals since the opening.
	Pulled     int64 `json:"pulled"` // versions, from it
	Served     int64 `json:"served"` // versions, to it
	BytesIn    int64 `json:"bytesIn"`
	BytesOut   int64 `json:"bytesOut"`
	Pushes     int64 `json:"pushes"`     // to it
	Duplicates int64 `json:"duplicates"` // versions that it pushed and that were known here
}

// PeerState is how a peer was last found.
type PeerState string

// The states of a peer.
const (
	PeerNew     PeerState = "new"     // no session with it has ended yet
	PeerOK      PeerState = "ok"      // the last session ended well, or it dials us, which is enough
	PeerFailing PeerState = "failing" // the last session failed
	PeerRefused PeerState = "refused" // it refused us, or we refused it: another cluster or protocol, say
	PeerSelf    PeerState = "self"    // the address leads to this replica itself
)

// PeerSource is how the address of a peer became known.
type PeerSource string

// The sources of addresses. Where several name an address, the first of these counts.
const (
	SourceConfigured PeerSource = "list"       // Options.Peers or [DB.AddPeer]; never given up
	SourceDiscovered PeerSource = "discovered" // a [Discoverer]
	SourceLearnt     PeerSource = "learnt"     // another peer
	SourceIncoming   PeerSource = "incoming"   // the peer dialed us
)

// PurgeBlocker is a member that holds back the forgetting of a deletion: it has not
// been heard since the opening, or has not reported to have the deletion on disk.
// What it does not confirm is forgotten by age, see Options.TombstoneTTL; the
// member counts no more once it was not seen for Options.PeerTTL. Deletions are looked
// through every 10 s, so a blocker is named, and no longer named, so much later.
type PurgeBlocker struct {
	Name   string    `json:"name"`
	Origin Origin    `json:"origin"`
	Seen   time.Time `json:"seen"`  // when it was last heard
	Since  time.Time `json:"since"` // when it was first noticed to hold back
}

// Status is what this replica knows of itself and of its peers. It asks nobody and
// reads nothing from the store, so it may be called often: it costs a few
// microseconds for each peer, and more with origins, of which every opening of every
// database that wrote is one. The caller owns what it gets.
func (db *DB) Status() Status {
	now := db.opts.Now()
	s := Status{Time: now, Name: db.opts.Name, Cluster: db.opts.Cluster, Origin: Origin(db.self), Addr: db.network.listener.Addr().String(), Ready: isClosed(db.ready), Delays: []Delay{}}
	s.ReadOnly = db.queue.broken() == leveldb.ErrReadOnly
	var known causal.Knowledge
	var members map[causal.Origin]replica.Member
	var succeeded map[causal.Origin]bool
	db.with(func(r *replica.Replica) {
		s.own(r)
		// What a member reported is replaced, never changed, so it may be read later.
		known, members = r.Known.Clone(), make(map[causal.Origin]replica.Member, len(r.Members))
		for o, m := range r.Members {
			members[o] = *m
		}
		succeeded = maps.Clone(r.Succeeded)
		s.Delays = db.delays.status(r.Members)
	})
	db.activity.fill(&s, time.Now(), db.opts.MinInterval, db.opts.MaxInterval)
	s.Live = len(db.links.all())
	if db.links.enough.Load() {
		s.Interval = db.opts.MaxInterval
	}
	failed, starved := db.health.errors()
	if failed != nil {
		s.Failed = failed.Error()
	}
	if starved != nil {
		s.Starved = starved.Error()
	}
	s.Refusals = append([]Refusal{}, db.network.refusals.status()...)
	s.Peers = []PeerStatus{}
	at := time.Now()
	s.Alone = db.peers.isAlone(at)
	db.peers.each(func(p *peer) {
		ps := p.status()
		if silent := at.Sub(p.last); p.who.guest && !p.last.IsZero() && !db.peers.thereLocked(p, at) {
			ps.State, ps.Failures, ps.Error = PeerFailing, 1, fmt.Sprintf("it has not come for %v, and it cannot be dialed", silent.Round(time.Second))
		}
		ps.Moved = succeeded[p.origin]
		if m, ok := members[p.origin]; ok {
			ps.compare(&m, p, &known, &s)
		}
		s.Peers = append(s.Peers, ps)
	})
	return s
}

// own fills in what the replica knows.
func (s *Status) own(r *replica.Replica) {
	if _, s.Counting = r.Counting(); !s.Counting {
		s.Digest = Digest(r.Digest.Digest())
	}
	s.Keys, s.Tombstones, s.Conflicts = r.Keys, r.Tombstones, r.Conflicts
	s.Rewound = r.Rewound() != ""
	s.HeldBack = int64(len(r.HeldBack))
	for _, n := range r.HeldBack {
		s.Largest = max(s.Largest, int64(n))
	}
	s.VersionVector = []VectorEntry{}
	for _, w := range r.Known.Rows {
		if w.Seqs[causal.Covered] > 0 {
			s.VersionVector = append(s.VersionVector, VectorEntry{Origin(w.Origin), w.Seqs[causal.Covered], w.Seqs[causal.Durable], r.Own[w.Origin]})
			s.NotDurable += int64(w.Seqs[causal.Covered] - w.Seqs[causal.Durable])
		}
	}
	s.Blockers = []PurgeBlocker{}
	for _, m := range r.Blockers() {
		s.Blockers = append(s.Blockers, PurgeBlocker{m.Name, Origin(m.Origin), m.Seen, m.BlockingSince})
	}
}

func (p *peer) status() PeerStatus {
	s := PeerStatus{
		Addr: p.addr, NoAddr: p.who.guest, Name: p.name, Origin: Origin(p.origin), Source: p.source.public(), State: p.state, Live: p.liveSince, Last: p.last,
		Failures: p.failed, Next: p.next, Pulled: p.pulled, Served: p.served, BytesIn: p.in, BytesOut: p.out, Pushes: p.pushes, Duplicates: p.duplicates,
	}
	if p.err != nil {
		s.Error = session.PrintableError(p.err)
		if step := (*PeerError)(nil); errors.As(p.err, &step) {
			s.FailedOp = step.Op
		}
	}
	return s
}

// compare fills in how a peer stands to what is known and held here.
func (s *PeerStatus) compare(m *replica.Member, p *peer, known *causal.Knowledge, here *Status) {
	for _, w := range known.Rows {
		s.Lag += causal.Above(w.Seqs[causal.Covered], max(m.Known.Seq(causal.Covered, w.Origin), p.has.Seq(w.Origin)))
		s.NotDurable += causal.Above(w.Seqs[causal.Covered], m.Known.Seq(causal.Durable, w.Origin))
	}
	s.Ahead = known.Behind(&m.Known)
	s.Agreed = m.Agreed
	if s.Counting = m.Counting; !s.Counting {
		s.Digest = Digest(m.Digest.Digest())
	}
	same, comparable := s.Digest == here.Digest, !s.Counting && !here.Counting
	s.Agrees = s.Lag == 0 && s.Ahead == 0 && comparable && same
	s.Differs = m.VectorSum == known.VectorSum && comparable && !same
	if s.Lag > 0 {
		s.LagTime = max(here.Time.Sub(p.covered), 0)
	}
}
