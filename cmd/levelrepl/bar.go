package main

import (
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/level-replicator/replicator"
)

// bar shows the progress of long work on a terminal; elsewhere it shows nothing. It appears
// once the work has taken a moment.
type bar struct {
	out io.Writer // nil: nowhere

	mu   sync.Mutex
	work string
	bar  *progressbar.ProgressBar
}

func (a *app) newBar() *bar {
	if !a.errTerm {
		return &bar{}
	}
	return &bar{out: a.err}
}

// tell is for replicator.Events.
func (b *bar) tell(p replicator.Progress) {
	if p.Done {
		b.end()
		return
	}
	b.at(string(p.Work), p.Keys, p.Total)
}

// at shows how many keys are done of a total, which is unknown if it is 0.
func (b *bar) at(work string, done, total int64) {
	if b.out == nil {
		return
	}
	if total <= 0 {
		total = -1
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar == nil || b.work != work {
		b.work = work
		b.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(b.out), progressbar.OptionSetDescription(work),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("keys"),
			progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	if total > 0 && total != b.bar.GetMax64() {
		b.bar.ChangeMax64(max(total, done+1))
	}
	_ = b.bar.Set64(done)
}

// end removes the bar.
func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar != nil {
		_ = b.bar.Finish()
		_ = b.bar.Clear()
		b.bar = nil
	}
}
