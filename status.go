package replicator

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// Digest is a 128-bit sum of a hash of every version that a server holds under
// keys with a value. Two servers that know of the same writes have the same
// digest exactly if they hold the same. Compare with ==.
type Digest [16]byte

// String gives the digest as 32 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText makes a digest a string in JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(text []byte) error { return (*Origin)(d).UnmarshalText(text) }

// Status is what a server knows of itself and of its peers at one moment. It
// marshals to JSON; durations are in nanoseconds there.
type Status struct {
	Name       string         `json:"name"`
	Cluster    string         `json:"cluster"`
	Origin     Origin         `json:"origin"` // of this opening
	Addr       string         `json:"addr"`   // the listener's
	Ready      bool           `json:"ready"`  // the first attempt to replicate is over
	ReadOnly   bool           `json:"readOnly"`
	Failed     string         `json:"failed,omitempty"` // why writes are refused, if the store failed
	Digest     Digest         `json:"digest"`
	Keys       int64          `json:"keys"`       // keys with a value
	Tombstones int64          `json:"tombstones"` // deleted keys that are still remembered
	Conflicts  int64          `json:"conflicts"`  // keys in conflict
	Claims     []Claim        `json:"claims"`     // by origin
	Velocity   float64        `json:"velocity"`   // changes per second, decaying with a half-life of 5 s
	Pause      time.Duration  `json:"pause"`      // between rounds, at this velocity
	Sessions   int64          `json:"sessions"`   // since the opening
	Pulled     int64          `json:"pulled"`     // versions taken from peers since the opening
	Served     int64          `json:"served"`     // versions sent to peers since the opening
	BytesIn    int64          `json:"bytesIn"`
	BytesOut   int64          `json:"bytesOut"`
	Mismatches int64          `json:"mismatches"` // versions that had to come back after a digest differed
	Peers      []PeerStatus   `json:"peers"`
	Refusals   []Refusal      `json:"refusals"` // connections turned away lately, at most 33
	Blockers   []PurgeBlocker `json:"blockers"` // members that hold back the forgetting of deletions
	Work       []Progress     `json:"work"`     // long work under way
}

// Claim says how far a server knows one origin's log: of every write up to Seq
// it holds it, or something that saw it. What is up to Durable is on disk.
type Claim struct {
	Origin  Origin `json:"origin"`
	Seq     uint64 `json:"seq"`
	Durable uint64 `json:"durable"`
	Own     bool   `json:"own"` // an opening of this database
}

// PeerStatus is what a server knows of a peer.
type PeerStatus struct {
	Addr     string        `json:"addr"`
	Name     string        `json:"name"`
	Origin   Origin        `json:"origin"`
	Source   string        `json:"source"` // "list", "discovered", "learnt", "incoming"
	State    string        `json:"state"`  // "new", "ok", "failing", "refused"
	Last     time.Time     `json:"last"`   // end of the last good session
	Failures int           `json:"failures"`
	Error    string        `json:"error,omitempty"` // of the last session, if it failed; or why nothing was pulled, if nothing is written here
	Next     time.Time     `json:"next"`            // not dialed before
	Agrees   bool          `json:"agrees"`          // it held exactly what we did when last asked
	Lag      int64         `json:"lag"`             // writes known here that it had not claimed when last asked
	Behind   time.Duration `json:"behind"`          // if it lags: since the last good session
	Digest   Digest        `json:"digest"`          // of what it held when last asked
	Pulled   int64         `json:"pulled"`
	Served   int64         `json:"served"`
	BytesIn  int64         `json:"bytesIn"`
	BytesOut int64         `json:"bytesOut"`
}

// PurgeBlocker is a member whose last report does not cover a deletion that
// could otherwise be forgotten.
type PurgeBlocker struct {
	Name   string    `json:"name"`
	Origin Origin    `json:"origin"`
	Seen   time.Time `json:"seen"` // when it was last heard
}

// progress keeps long work for Status and tells Events of it.
func (db *DB) progress(p Progress) {
	db.mu.Lock()
	id := p.Work + " " + p.Peer
	if p.Done {
		delete(db.work, id)
	} else {
		db.work[id] = p
	}
	db.mu.Unlock()
	if f := db.opts.Events.Progress; f != nil {
		f(p)
	}
}

// Status is what this server knows of itself and of its peers.
func (db *DB) Status() Status {
	now := time.Now()
	s := Status{Name: db.opts.Name, Cluster: db.opts.Cluster, Origin: db.self, Addr: db.listener.Addr().String()}
	select {
	case <-db.ready:
		s.Ready = true
	default:
	}
	broken := db.queue.broken()
	s.ReadOnly = broken == leveldb.ErrReadOnly
	members := map[Origin]memberStatus{}
	db.at(func(r *replica) { db.ownStatus(r, &s, members) })
	db.mu.Lock()
	s.Velocity = db.velocity.now(now)
	s.Pause = db.velocity.pause(now, db.opts.MinInterval, db.opts.MaxInterval)
	s.Sessions, s.Pulled, s.Served = db.total.sessions, db.total.pulled, db.total.served
	s.BytesIn, s.BytesOut, s.Mismatches = db.total.in, db.total.out, db.total.mismatches
	if db.cause != nil {
		s.Failed = db.cause.Error()
	}
	for _, w := range db.work {
		s.Work = append(s.Work, w)
	}
	db.mu.Unlock()
	slices.SortFunc(s.Work, func(a, b Progress) int {
		if a.Work+a.Peer < b.Work+b.Peer {
			return -1
		}
		return 1
	})
	s.Refusals = db.refusals.status()
	s.Peers = []PeerStatus{}
	db.peers.each(func(p *peer) { s.Peers = append(s.Peers, p.status(members, s.Digest, now)) })
	return s
}

type memberStatus struct {
	lag    int64
	digest Digest
}

func (db *DB) ownStatus(r *replica, s *Status, members map[Origin]memberStatus) {
	s.Digest, s.Keys, s.Tombstones, s.Conflicts = r.digest.digest(), r.keys, r.tombstones, r.disputed
	s.Claims = []Claim{}
	for _, w := range r.known.rows {
		if w.at[claimed] > 0 {
			s.Claims = append(s.Claims, Claim{w.origin, w.at[claimed], w.at[durable], r.own[w.origin]})
		}
	}
	for o, m := range r.members {
		members[o] = memberStatus{m.known.behind(&r.known), m.digest.digest()}
	}
	s.Blockers = []PurgeBlocker{}
	if r.tombstones > 0 {
		for _, o := range r.settlement().blockers {
			m := r.members[o]
			s.Blockers = append(s.Blockers, PurgeBlocker{m.name, o, m.seen})
		}
	}
}

// behind counts the writes that other claims and k does not.
func (k *knowledge) behind(other *knowledge) (n int64) {
	for _, w := range other.rows {
		if d := int64(w.at[claimed]) - int64(k.at(claimed, w.origin)); d > 0 {
			n += d
		}
	}
	return n
}

func (p *peer) status(members map[Origin]memberStatus, digest Digest, now time.Time) PeerStatus {
	s := PeerStatus{
		Addr: p.addr, Name: p.name, Origin: p.origin, Source: p.source.String(), State: p.state, Last: p.last,
		Failures: p.failed, Next: p.next, Pulled: p.pulled, Served: p.served, BytesIn: p.in, BytesOut: p.out,
	}
	if p.err != nil {
		s.Error = p.err.Error()
	}
	if m, ok := members[p.origin]; ok {
		s.Lag, s.Digest = m.lag, m.digest
		s.Agrees = m.lag == 0 && m.digest == digest
		if m.lag > 0 && !p.last.IsZero() {
			s.Behind = now.Sub(p.last)
		}
	}
	return s
}
