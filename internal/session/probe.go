package session

import (
	"slices"

	"github.com/level-replicator/replicator/internal/replica"
)

// What a probe reply says of a range.
const (
	replySame byte = iota
	replyDots
	replySplit
)

// gotProbe answers: the same, or the dots if they are few, or the sums of parts.
func (s *Session) gotProbe(payload []byte) error {
	d, err := s.reading.open(payload)
	if err != nil {
		return err
	}
	counted := d.Byte()&1 != 0
	n := d.Count(20)
	if n > replica.ProbeRanges {
		return replica.ProtocolErrorf("probe of %d ranges", n)
	}
	asked := make([]replica.DotRange, 0, n)
	for range n {
		asked = append(asked, replica.DotRange{First: d.Dot(&s.reading), Last: d.Dot(&s.reading), Sum: d.Sum()})
	}
	if err := d.End(); err != nil {
		return replica.ProtocolErrorf("probe: %v", err)
	}
	if overlap(asked) {
		return replica.ProtocolErrorf("probe: ranges overlap")
	}
	state, err := s.view(nil)
	if err != nil {
		return err
	}
	defer state.Release()
	s.tell(&state)
	ours := slices.Clone(asked)
	if err := state.Measure(ours, counted); err != nil {
		return err
	}
	os := &s.sending
	var body []byte
	for i, g := range ours {
		switch {
		case g.Sum == asked[i].Sum:
			body = append(body, replySame)
		case g.Count <= s.params.ListBelow:
			body, err = appendDots(&state, append(body, replyDots), g, counted, os)
		default:
			body, err = appendSplit(&state, append(body, replySplit), g, counted, os)
		}
		if err != nil {
			return err
		}
	}
	s.outbox.send(FrameProbeReply, os.Frame(func(b []byte) []byte { return append(b, body...) }))
	return nil
}
