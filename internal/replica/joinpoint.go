package replica

import (
	"slices"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/store"
)

// JoinPoint is where a join goes on that broke off (J6): all keys up to the cursor were merged that hold something
// which was not covered here when it began.
type JoinPoint struct {
	First  causal.Vector // the version vector of the server in its first state: what is covered once all keys are merged
	Purged causal.Vector // its purged watermark at the last page: nothing was sent of what is within it
	Base   causal.Vector // what was covered here when the join began: nothing was sent of that
	Cursor []byte
}

// RememberJoin notes how far a join has come. The point is not changed afterwards.
func (r *Replica) RememberJoin(p *JoinPoint) {
	r.Resume.Rev++
	r.Join = p
}

// JoinPoint returns where a join may go on, nil if there is no such point, or what it rests on is not covered any more.
func (r *Replica) JoinPoint() *JoinPoint {
	p := r.Join
	if p == nil || slices.ContainsFunc(p.Base, func(d causal.Dot) bool { return !r.Known.Covers(d) }) {
		return nil
	}
	return p
}

// append writes the point behind a record.
func (p *JoinPoint) append(b []byte) []byte {
	for _, v := range []causal.Vector{p.First, p.Purged, p.Base} {
		b = appendDots(b, v)
	}
	return store.AppendBytes(b, p.Cursor)
}

func decodeJoinPoint(d *store.Decoder) *JoinPoint {
	return &JoinPoint{First: decodeDots(d), Purged: decodeDots(d), Base: decodeDots(d), Cursor: slices.Clone(d.Bytes(len(d.B)))}
}
