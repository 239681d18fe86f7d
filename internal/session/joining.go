package session

import (
	"bytes"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/replica"
	"github.com/level-replicator/replicator/internal/store"
)

// joining takes in a pull that is answered in sections. Log entries are staged as they come, with Sync (J2). Rows
// are merged as they come, and what was staged and has no row is swept in the end (J3). A join that breaks
// off goes on behind the last row, at any server that covers what this one covered (J6).
type joining struct {
	p       *pulling
	base    causal.Vector // what is covered here: the server sends nothing of it
	rows    bool          // the entries of this round have come
	rounds  int           // that are over
	last    []byte        // key of the last row
	passed  bool          // there is one
	entries int64         // that came
	taken   int64         // rows that came
	expects int64         // rows that are to come, about

	patience time.Duration // for which the store is waited for during one frame

	entryRoom []store.Entry // memory for those of a frame
	rowRoom   []replica.Row
}

// rowsPerBatch is how many rows are merged at a time, as writers wait meanwhile.
const rowsPerBatch = 1 << 9

// entryWeight is what an entry takes, where a row takes 1: of the work that is left.
const entryWeight = 0.35

// mayJoin reports whether both sides know what a join is.
func (s *Session) mayJoin() bool { return min(s.mine.Max, s.theirs.Max) >= joinVersion }

// joins reports whether to ask for a join: much is missing here. busy says that another session has done so.
func (p *pulling) joins(r *replica.Replica, news int64) (ask, busy bool) {
	s := p.session
	if ask = s.mayJoin() && news >= s.params.JoinAbove && !p.reconcile && !s.params.Goal.any(); ask && r.Joining {
		return false, true
	}
	return ask, false
}

// gotSections begins the join: the server has said which of its states is the first.
func (p *pulling) gotSections(payload []byte) error {
	d := store.Decoder{B: payload}
	how, expects := d.Byte(), d.UpTo(causal.MaxSeq)
	if err := d.End(); err != nil || how > sectionsContinue || (how == sectionsContinue) != (p.join != nil) || !p.asksJoin || p.vector == nil {
		return replica.ProtocolErrorf("sections that do not belong here")
	}
	if how == sectionsContinue {
		return p.join.nextRound()
	}
	j := &joining{p: p, base: p.base, expects: int64(expects)}
	if how == sectionsResumed {
		if p.resume == nil {
			return replica.ProtocolErrorf("sections of a join that was not begun")
		}
		j.base = p.resume.Base
		p.vector = p.resume.First
		j.last, j.passed = p.resume.Cursor, true
	}
	p.session.host.With((*replica.Replica).BeginSections)
	p.join, p.torn = j, true
	return nil
}

// nextRound ends one round, and begins another.
func (j *joining) nextRound() error {
	if err := j.end(); err != nil {
		return err
	}
	j.rows, j.rounds, j.rowRoom = false, j.rounds+1, nil
	j.p.session.host.With((*replica.Replica).BeginSections)
	return nil
}

// gotEntries stages log entries.
func (j *joining) gotEntries(payload []byte) error {
	s := j.p.session
	j.patience = KeepaliveInterval
	if j.rows {
		return replica.ProtocolErrorf("log entries after rows")
	}
	entries, err := readEntries(payload, &s.reading, j.entryRoom)
	if err != nil {
		return err
	}
	j.entryRoom = entries
	if err := j.checkEntries(entries); err != nil {
		return err
	}
	// One that is too large a key is no use: its row says so.
	entries = slices.DeleteFunc(entries, func(e store.Entry) bool { return len(e.Key) > s.params.MaxKey })
	for n := 0; len(entries) > 0; entries = entries[n:] {
		n = min(len(entries), 2*rowsPerBatch)
		err := s.host.Commit(func(t *replica.Txn) error { return t.StageAhead(entries[:n], &s.known) })
		if err != nil {
			return err
		}
		j.entries += int64(n)
		j.pace()
	}
	return nil
}

// checkEntries refuses what no honest peer would send, before any of it is stored.
func (j *joining) checkEntries(entries []store.Entry) (err error) {
	j.p.session.host.With(func(r *replica.Replica) {
		latest := causal.StampOf(r.Now().Add(r.MaxSkew))
		versions := make([]store.Version, 1)
		for i := range entries {
			e := &entries[i]
			if i > 0 && entries[i-1].Origin == e.Origin && entries[i-1].Seq >= e.Seq || !r.Follows(e.Dot) {
				err = replica.ProtocolErrorf("log entries are out of order")
				return
			}
			versions[0] = e.Version
			if err = checkKey(r, e.Key, versions, latest); err != nil {
				return
			}
		}
	})
	return err
}

// follows reports whether keys come after those that came, in order, and notes the last.
func (j *joining) follows(key []byte) bool {
	ok := !j.passed || bytes.Compare(j.last, key) < 0
	j.last, j.passed = key, true
	return ok
}

// gotRows merges rows.
func (j *joining) gotRows(payload []byte) error {
	s := j.p.session
	j.patience = KeepaliveInterval
	j.rows, j.entryRoom = true, nil
	rows, err := readRows(payload, &s.reading, j.rowRoom)
	if err != nil {
		return err
	}
	j.rowRoom = rows
	for i := range rows {
		if !j.follows(rows[i].Key) || store.Reserved(rows[i].Key) || len(rows[i].Key) > s.params.MaxKey || len(rows[i].Version.Value) > s.params.MaxValue {
			return replica.ProtocolErrorf("a row of key %.40q, which does not belong there", rows[i].Key)
		}
	}
	for n := 0; len(rows) > 0; rows = rows[n:] {
		n = batchOf(rows, s.params.BatchSize)
		fresh := 0
		err := s.host.Commit(func(t *replica.Txn) (err error) {
			fresh, err = t.TakeRows(rows[:n], &s.known)
			return err
		})
		if err != nil {
			return err
		}
		s.result.Pulled += fresh
		j.taken += int64(n)
		j.remember(rows[n-1].Key)
		j.pace()
	}
	return nil
}

// pace lets the store catch up: a join brings more than it can compact. Nothing is read meanwhile, and whoever
// reads nothing is cut off, so there is a limit to it for each frame.
func (j *joining) pace() {
	if h, ok := j.p.session.host.(Pacer); ok && j.patience > 0 {
		j.patience -= h.Pace(j.patience)
	}
}

// batchOf returns how many rows are merged next: not too many, nor too many bytes of them.
func batchOf(rows []replica.Row, most int) (n int) {
	for n < min(len(rows), rowsPerBatch) && (n == 0 || most > 0) {
		most -= store.WriteOverhead + 2*len(rows[n].Key) + len(rows[n].Version.Value)
		n++
	}
	return n
}

// gotKeys merges keys that came whole.
func (j *joining) gotKeys(marks []causal.Region, keys []replica.RemoteKey) error {
	s := j.p.session
	j.rows = true
	for i := range keys {
		if len(marks) > 0 || !j.follows(keys[i].Key) {
			return replica.ProtocolErrorf("a page of key %.40q, which does not belong there", keys[i].Key)
		}
	}
	m := chunkedCommit{
		n: len(keys), most: mergeSlice, count: &s.result.Pulled,
		first: func(t *replica.Txn) error { t.JoinWatermarks(&s.known); return nil },
		step: func(t *replica.Txn, i int) (int, error) {
			return t.TakeKey(keys[i].Key, keys[i].Versions, &s.known)
		},
	}
	if err := m.commit(s.host); err != nil {
		return err
	}
	if j.taken += int64(len(keys)); len(keys) > 0 {
		j.remember(keys[len(keys)-1].Key)
	}
	return nil
}

// remember notes how far the join has come. What is held back, or has values that are still to be asked for,
// has to come again.
func (j *joining) remember(key []byte) {
	p := j.p
	if len(p.back.Keys) > 0 || p.back.Over || len(p.wants.keys) > 0 {
		return
	}
	point := &replica.JoinPoint{First: p.vector, Purged: p.session.known.Vector(causal.Purged), Base: j.base, Cursor: slices.Clone(key)}
	p.session.host.With(func(r *replica.Replica) { r.RememberJoin(point) })
}

// end is called when all sections have come.
func (j *joining) end() error {
	return replica.EndSections(j.p.session.host)
}

// progress returns how much of the work is done, and of how many keys in all.
func (j *joining) progress() (part float64, keys int64) {
	all := max(j.expects, j.entries, j.taken)
	if j.rows && j.rounds == 0 && j.entries > 0 && j.entries < roundKeys { // there is no other round
		all = max(j.entries, j.taken)
	}
	if all == 0 {
		return 1, all
	}
	return (entryWeight*float64(j.entries) + float64(j.taken)) / ((entryWeight + 1) * float64(all)), all
}
