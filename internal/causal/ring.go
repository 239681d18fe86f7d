package causal

// Ring finds the origin that comes after another, if all are put in order and the least follows the
// greatest. Peers that are chosen at random alone leave out one replica in fifty; if each replica that hears
// of something tells the next one, all of them hear of it.
type Ring struct {
	self, least, next Origin // zero: none
}

// NewRing returns the ring of a replica, to which the origins of others are to be added.
func NewRing(self Origin) Ring { return Ring{self: self} }

// Add adds an origin; a zero one is none.
func (r *Ring) Add(o Origin) {
	switch none := (Origin{}); {
	case o == none || o == r.self:
		return
	case o.Compare(r.self) > 0 && (r.next == none || o.Compare(r.next) < 0):
		r.next = o
	}
	if r.least == (Origin{}) || o.Compare(r.least) < 0 {
		r.least = o
	}
}

// Next returns the origin after the replica's own, zero if there is no other.
func (r *Ring) Next() Origin {
	if r.next != (Origin{}) {
		return r.next
	}
	return r.least
}
