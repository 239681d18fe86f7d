package replicator

// progress keeps long work for Status and tells Events of it.
func (db *DB) progress(p Progress) {
	db.mu.Lock()
	id := p.Work + " " + p.Peer
	if p.Done {
		delete(db.work, id)
	} else {
		db.work[id] = p
	}
	db.mu.Unlock()
	if f := db.opts.Events.Progress; f != nil {
		f(p)
	}
}
