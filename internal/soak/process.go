package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

// process is one replica of the cluster as the parent sees it. It may be started and killed
// many times.
type process struct {
	conf  config
	space string // the network namespace that it runs in, if not that of the parent

	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{} // closed when the process is gone and all its output was read

	mu     sync.Mutex // guards what follows
	acked  int64
	spans  [][2]int64 // numbers of own writes that were acknowledged: above the first, up to the second
	opened []time.Duration
	writes int64
	failed []string
	told   chan *report // answers to report and dump
}

func newProcess(c config, space string) *process {
	return &process{conf: c, space: space, told: make(chan *report, 16)}
}

// freeAddr returns an address to listen on, the same after each restart.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// ownGap is left between the numbers of one start and the next: what was
// acknowledged but not reported when a process was killed keeps its number.
const ownGap = 10_000

func (p *process) start() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	p.cmd = exec.Command(exe, "-replica")
	if p.space != "" {
		p.cmd = exec.Command("ip", "netns", "exec", p.space, exe, "-replica") // which it becomes
	}
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.mu.Lock()
	p.conf.FirstOwn = (p.acked/ownGap + 1) * ownGap
	p.acked = p.conf.FirstOwn
	p.mu.Unlock()
	p.ended = make(chan struct{})
	opened := make(chan struct{})
	go p.listen(out, opened, p.ended)
	if err := json.NewEncoder(p.stdin).Encode(&p.conf); err != nil {
		return err
	}
	select {
	case <-opened:
		return nil
	case <-p.ended:
		return fmt.Errorf("replica %d ended instead of opening: %v", p.conf.Number, p.cmd.Wait())
	case <-time.After(time.Minute):
		return fmt.Errorf("replica %d does not open within a minute", p.conf.Number)
	}
}

func (p *process) listen(out io.Reader, opened, ended chan struct{}) {
	defer close(ended)
	lines := bufio.NewReader(out)
	var writes int64
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break // what is left may be half a line
		}
		r := new(report)
		if err := json.Unmarshal(line, r); err != nil {
			p.fail("prints %q: %v", line, err)
			continue
		}
		p.mu.Lock()
		p.acked = max(p.acked, r.Acked)
		writes = max(writes, r.Writes)
		p.mu.Unlock()
		switch {
		case r.Error != "":
			p.fail("%s", r.Error)
		case r.Failed != "":
			p.fail("refuses writes: %s", r.Failed)
		case r.Opened > 0:
			p.mu.Lock()
			p.opened = append(p.opened, r.Opened)
			p.mu.Unlock()
			close(opened)
		case r.Dumped || r.Goroutines > 0:
			p.told <- r
		}
	}
	p.mu.Lock()
	p.writes += writes
	p.spans = append(p.spans, [2]int64{p.conf.FirstOwn, p.acked})
	p.mu.Unlock()
}

func (p *process) fail(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = append(p.failed, fmt.Sprintf("replica %d ", p.conf.Number)+fmt.Sprintf(format, args...))
}

func (p *process) say(word string) { fmt.Fprintln(p.stdin, word) }

// answer waits for the answer to a word.
func (p *process) answer(ctx context.Context, word string) (*report, error) {
	select {
	case r := <-p.told:
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-p.ended:
		return nil, fmt.Errorf("replica %d ended", p.conf.Number)
	case <-time.After(time.Minute):
		return nil, fmt.Errorf("replica %d does not answer to %q within a minute", p.conf.Number, word)
	}
}

// kill ends the process at once.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
	p.cmd.Wait()
	p.stdin.Close()
}

// stop ends the process cleanly.
func (p *process) stop() error {
	p.say("stop")
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		p.kill()
		return fmt.Errorf("replica %d did not close within a minute", p.conf.Number)
	}
	p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("replica %d closed with: %w", p.conf.Number, err)
	}
	return nil
}

// atLeast returns, for each own key, the number of its last acknowledged write.
func (p *process) atLeast() map[string]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := map[string]int64{}
	for _, s := range p.spans {
		for n := max(s[0]+1, s[1]-int64(p.conf.OwnKeys)+1); n <= s[1]; n++ {
			m[string(ownKey(p.conf.Number, n, p.conf.OwnKeys))] = n
		}
	}
	return m
}
