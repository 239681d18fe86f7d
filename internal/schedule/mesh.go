package schedule

// Mesh decides how many links a replica has, connections that stay open while there is news, and what they
// suffice for.
type Mesh struct {
	Fanout int // sessions in a round: [Config]
}

// Small reports whether a replica may have links with all others, given how many answer. Then whoever
// writes tells all of them by itself.
func (m Mesh) Small(answering int) bool { return answering <= 2*m.Fanout }

// Room reports whether a replica with some links may have another: more than it dials for, so that whoever
// lacks some finds others with room.
func (m Mesh) Room(links int) bool { return links < 2*m.Fanout }

// Enough reports whether links carry changes, so that no rounds need to: all replicas that answer have
// one, or as many as a round would reach.
func (m Mesh) Enough(links int, all, small bool) bool {
	return links > 0 && (all || !small && links >= m.Fanout)
}

// Sessions returns with how many peers a round holds sessions at most, beside some links.
func (m Mesh) Sessions(links int, small bool) int {
	if small {
		return m.Fanout
	}
	return max(1, m.Fanout-links)
}
