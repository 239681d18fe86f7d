package session

import (
	"math"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// P9: a key is transferred with all its siblings, which may be far more together than
// anybody would hold in memory or send at a stretch. Then they are named only, and the
// puller, once it has all else, asks for the values: some of them at a time, of a state
// of their own, with all siblings named anew each time. So no key holds up others, and
// what was merged of one need not be sent again after the session broke off.

const (
	ApartPages = 4       // pages of values that are sent with the key, or at a time of those that are asked for
	maxApart   = 1 << 12 // keys that are named only, in one pull; for more the peer comes again
	WantKeys   = 1 << 6  // of which values are asked for at a time
	partSize   = 16 << 20
)

// contents reads what a peer lacks of a key. If that is more than one value and more
// than some bytes, it is named only; the rest is what the peer has.
func (c *sender) contents(st *replica.View, key []byte, held store.Siblings, has func(causal.Dot) bool, most int) (vs []store.Version, apart bool, err error) {
	vs = make([]store.Version, 0, len(held))
	size := 0
	for i := range held {
		v := held[i]
		switch {
		case has(v.Dot):
			v.NameOnly = true
		case apart:
			v.Apart = true
		default:
			e, err := store.ReadEntry(st, key, &held[i], st)
			if err == nil {
				err = e.ReadValue(st)
			}
			if err != nil {
				return nil, false, err
			}
			v = e.Version
			if v.Large = c.tooLarge(key, &v); v.Large > 0 {
				v.Value = nil
				break
			}
			n := SentAtLeast + 2*len(v.Context) + len(v.Value)
			if v.Apart = size > 0 && n > most-size; v.Apart {
				v, apart = store.Version{Dot: v.Dot, Deleted: v.Deleted, Apart: true}, true
				break
			}
			size += n
		}
		vs = append(vs, v)
	}
	return vs, apart, nil
}

// SentAtLeast is what a version comes to on the wire, about, without value and context.
const SentAtLeast = 32

// tooLarge returns the size of a value that the peer does not take, or 0 (M10).
func (c *sender) tooLarge(key []byte, v *store.Version) uint64 {
	if s := c.session; s.theirs.Apart && !v.Deleted && uint64(len(v.Value)) > s.theirs.maxValue || s.theirs.Apart && uint64(len(key)) > s.theirs.maxKey {
		return max(1, uint64(len(v.Value)))
	}
	return 0
}

// most is how many bytes of one key are sent with its name. Whoever does not ask for
// values gets all that it would take.
func (c *sender) most() int {
	s := c.session
	if s.theirs.Apart {
		return ApartPages * s.params.PageSize
	}
	if s.params.MaxValue > math.MaxInt/4 {
		return math.MaxInt
	}
	return 4 * s.params.MaxValue
}
