package session

import (
	"errors"

	"github.com/level-replicator/replicator/internal/replica"
)

// chunkedCommit are steps that are committed as one batch, or as several if that would
// be too large.
type chunkedCommit struct {
	n     int                        // steps
	first func(t *replica.Txn) error // comes before the steps in each batch; may be nil
	step  func(t *replica.Txn, i int) (int, error)
	ends  func(i int) bool           // a batch may well end with this step; nil: with any
	last  func(t *replica.Txn) error // comes after the last step; may be nil
	count *int                       // rises by what the steps return, once committed; may be nil
	most  int                        // steps after which a batch ends at the next good place, as writers wait for it; 0: they are one batch if it is not too large
}

// errChunkFull ends the staging of a batch that became too large.
var errChunkFull = errors.New("replicator: batch is too large")

// commit commits the steps, in one batch if it is not too large. The step that was one too many is found
// by staging it; then the batch is staged again up to the last good place to end, once, so this costs little.
func (p *chunkedCommit) commit(h Host) error {
	for from := 0; ; {
		to, err := p.commitBatch(h, from)
		if err != nil || to == p.n {
			return err
		}
		from = to
	}
}

// commitBatch commits one batch, and returns the step at which the next begins.
func (p *chunkedCommit) commitBatch(h Host, from int) (to int, err error) {
	to = p.n
	for cut := false; ; cut = true {
		count := 0
		err := h.Commit(func(t *replica.Txn) (err error) {
			count, to, err = p.stage(t, from, to, cut)
			return err
		})
		if err == errChunkFull && !cut {
			continue
		}
		if err == nil && p.count != nil {
			*p.count += count
		}
		return to, err
	}
}

// stage stages steps as one batch. It returns what they add to the count, and the step at which
// the batch is to end: sooner than was asked for if that is far enough. If the batch becomes too large and was not
// cut before, it is errChunkFull.
func (p *chunkedCommit) stage(t *replica.Txn, from, to int, cut bool) (count, end int, err error) {
	if p.first != nil {
		if err := p.first(t); err != nil {
			return 0, to, err
		}
	}
	good := from // the last good place to end
	for i := from; i < to; i++ {
		n, err := p.step(t, i)
		if err != nil {
			return 0, to, err
		}
		if count += n; !cut && t.Large() && i > from {
			if good == from {
				good = i
			}
			return 0, good, errChunkFull
		}
		if p.ends != nil && !p.ends(i) {
			continue
		}
		if good = i + 1; p.most > 0 && good-from >= p.most {
			if to = good; to < p.n {
				return count, to, nil
			}
		}
	}
	if p.last != nil && to == p.n {
		return count, to, p.last(t)
	}
	return count, to, nil
}
