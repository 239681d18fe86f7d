package statuspage

import (
	"context"
	"slices"
	"time"

	"github.com/level-replicator/replicator"
)

// Bounds of what is listed, so that the page stays short whatever the database holds.
const (
	maxConflicts = 20      // keys
	maxVersions  = 8       // of one key
	maxText      = 4 << 10 // bytes of a key or a value
	maxReplicas  = 100
	maxClaims    = 100
	maxLines     = 20 // of notes, of blockers, of refusals
)

// Page is what the status page shows; its JSON is what the page returns as JSON.
type Page struct {
	Status    replicator.Status `json:"status"`
	Conflicts []Conflict        `json:"conflicts"`       // the first 20 keys in conflict, in key order
	More      int64             `json:"more"`            // keys in conflict that are not listed
	Error     string            `json:"error,omitempty"` // why the list of conflicts ends early
	Changes   []Change          `json:"changes"`         // the latest 10 since somebody began to look at the page, the newest first
}

// list lists the latest changes.
func (p *Page) list(changes []Change) {
	p.Changes = append([]Change{}, changes...)
	names := names(&p.Status)
	for i := range p.Changes {
		p.Changes[i].Replica = names[p.Changes[i].Origin]
	}
}

// Conflict is a key in conflict.
type Conflict struct {
	Key          []byte    `json:"key"`            // base64 in JSON; at most 4 KiB
	Text         string    `json:"text,omitempty"` // the key, if it is printable text
	Versions     []Version `json:"versions"`       // the first 8, in canonical order
	MoreVersions int       `json:"moreVersions"`   // that are not listed
	Resolved     Value     `json:"resolved"`       // what reads of the key return
}

// Version is one of the versions of a key in conflict.
type Version struct {
	Value
	Clock   uint64            `json:"clock"`
	Time    time.Time         `json:"time"`
	Origin  replicator.Origin `json:"origin"`
	Seq     uint64            `json:"seq"`
	Replica string            `json:"replica,omitempty"` // name of its writer, if that is this replica or a peer in its current incarnation
	Winner  bool              `json:"winner"`            // the resolved value is that of this version
}

// Value is what a key or a version holds.
type Value struct {
	Deleted bool   `json:"deleted,omitempty"`
	Value   []byte `json:"value"`          // base64 in JSON; at most 4 KiB
	Text    string `json:"text,omitempty"` // the same, if it is printable text
	Size    int    `json:"size"`           // of the whole, in bytes
}

// newPage reads the database. It reads the conflicts again only if what the replica holds
// has changed since the page before.
func newPage(db *replicator.DB, before *Page) *Page {
	p := &Page{Status: db.Status(), Conflicts: []Conflict{}}
	s := &p.Status
	if before != nil && !s.Counting && before.Error == "" && before.Status.Digest == s.Digest && before.Status.Conflicts == s.Conflicts && before.Status.Tombstones == s.Tombstones {
		p.Conflicts, p.More, p.Error = before.Conflicts, before.More, before.Error
		return p
	}
	if s.Conflicts == 0 && !s.Counting {
		return p
	}
	names := names(s)
	for c, err := range db.Conflicts(context.Background()) {
		if err != nil {
			p.Error = err.Error()
			break
		}
		if len(p.Conflicts) == maxConflicts {
			break
		}
		p.Conflicts = append(p.Conflicts, conflict(&c, names))
	}
	p.More = max(s.Conflicts-int64(len(p.Conflicts)), 0)
	return p
}

func conflict(k *replicator.Conflict, names map[replicator.Origin]string) Conflict {
	c := Conflict{
		Key: clip(k.Key), Text: text(clip(k.Key)), Resolved: value(k.Value, k.Value == nil),
		MoreVersions: max(len(k.Versions)-maxVersions, 0),
	}
	for i, v := range k.Versions[:min(len(k.Versions), maxVersions)] {
		c.Versions = append(c.Versions, Version{
			Value: value(v.Value, v.Deleted), Clock: v.Clock, Time: v.Time, Origin: v.Origin, Seq: v.Seq,
			Replica: names[v.Origin], Winner: i == k.Winner,
		})
	}
	return c
}

func value(b []byte, deleted bool) Value {
	if deleted {
		return Value{Deleted: true}
	}
	return Value{Value: clip(b), Text: text(clip(b)), Size: len(b)}
}

// clip returns a copy of the beginning of a key or a value, which does not keep the rest in
// memory.
func clip(b []byte) []byte { return slices.Clone(b[:min(len(b), maxText)]) }

// names returns the name of the replica that writes under each origin now.
func names(s *replicator.Status) map[replicator.Origin]string {
	m := map[replicator.Origin]string{}
	for _, p := range s.Peers {
		if (p.Origin != replicator.Origin{}) {
			m[p.Origin] = p.Name
		}
	}
	for _, c := range s.VersionVector {
		if c.Own {
			m[c.Origin] = s.Name
		}
	}
	m[s.Origin] = s.Name
	return m
}
