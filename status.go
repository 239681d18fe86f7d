package replicator

import (
	"encoding/hex"
	"time"
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
