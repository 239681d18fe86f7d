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

// commitInChunks commits steps, in one batch if it is not larger than batchLimit. The
// step that was one too many is found by staging it; then the batch is staged
// again up to the last good place to end, once, so this costs little.
func (s *Session) commitInChunks(p chunkedCommit) error {
	for from := 0; ; {
		to, cut := p.n, false
		for {
			count := 0
			err := s.host.Commit(func(t *replica.Txn) (err error) {
				if count = 0; p.first != nil {
					if err := p.first(t); err != nil {
						return err
					}
				}
				end := from
				for i := from; i < to; i++ {
					n, err := p.step(t, i)
					if err != nil {
						return err
					}
					if count += n; !cut && t.Large() && i > from {
						if to = end; end == from {
							to = i
						}
						return errChunkFull
					}
					if p.ends != nil && !p.ends(i) {
						continue
					}
					if end = i + 1; p.most > 0 && end-from >= p.most {
						if to = end; to < p.n {
							return nil
						}
					}
				}
				if p.last != nil && to == p.n {
					return p.last(t)
				}
				return nil
			})
			if err == errChunkFull && !cut {
				cut = true
				continue
			}
			if err != nil {
				return err
			}
			if p.count != nil {
				*p.count += count
			}
			break
		}
		if to == p.n {
			return nil
		}
		from = to
	}
}
