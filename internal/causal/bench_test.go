package causal_test

import (
	"math/rand/v2"
	"testing"

	"github.com/level-replicator/replicator/internal/causal"
)

// manyOrigins are the vectors of two replicas that know of a thousand origins.
func manyOrigins() (a, b causal.Knowledge) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		var d causal.Dot
		for i := range d.Origin {
			d.Origin[i] = byte(r.Uint32())
		}
		d.Seq = 1 + r.Uint64N(1000)
		a.Raise(causal.Covered, d)
		b.Raise(causal.Covered, d)
	}
	return a, b
}

func BenchmarkVectorJoin(b *testing.B) {
	k, l := manyOrigins()
	v, w := k.Vector(causal.Covered), l.Vector(causal.Covered)
	for b.Loop() {
		v = v.Join(w)
	}
}

func BenchmarkKnowledgeWithin(b *testing.B) {
	k, l := manyOrigins()
	for b.Loop() {
		if !k.Within(causal.Covered, &l, causal.Covered) {
			b.Fatal("it is not")
		}
	}
}

func BenchmarkKnowledgeBehind(b *testing.B) {
	k, l := manyOrigins()
	for b.Loop() {
		if k.Behind(&l) > 0 {
			b.Fatal("it is behind")
		}
	}
}
