package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// process is a replica's process as its parent sees it.
type process struct {
	name   string
	dir    string
	cmd    *exec.Cmd
	addr   string // where it takes peers
	opened chan struct{}
	gone   chan struct{} // closed when the process has ended, with err set
	err    error

	mu          sync.Mutex
	in          io.WriteCloser
	lastID      int
	pending     map[int]func(reply) // called from the goroutine that reads
	noMulticast string              // why the replica has no multicast
}

// start runs this program once more, as the replica that c describes.
func start(exe string, c config) (*process, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(c.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	role, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	s := &process{
		name:    c.Name,
		dir:     c.Dir,
		cmd:     exec.Command(exe),
		opened:  make(chan struct{}),
		gone:    make(chan struct{}),
		pending: make(map[int]func(reply)),
	}
	s.cmd.Env = append(os.Environ(), roleEnv+"="+string(role))
	s.cmd.Stderr = log
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	go s.read(out)
	return s, nil
}

// read hands out the replies until the process has ended.
func (s *process) read(out io.Reader) {
	err := s.replies(bufio.NewReaderSize(out, 1<<16))
	if err != nil {
		s.cmd.Process.Kill() // it no longer makes sense
	}
	s.err = errors.Join(err, s.cmd.Wait())
	close(s.gone)
}

func (s *process) replies(out *bufio.Reader) error {
	for {
		line, err := out.ReadBytes('\n')
		if err != nil {
			return nil // it ended, perhaps in the midst of a line; Wait says why
		}
		var r reply
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("read a reply: %w", err)
		}
		r.value = make([]byte, r.Size)
		if _, err := io.ReadFull(out, r.value); err != nil {
			return nil
		}
		if r.ID == 0 {
			if err := s.news(r); err != nil {
				return err
			}
			continue
		}
		s.mu.Lock()
		each := s.pending[r.ID]
		s.mu.Unlock()
		each(r)
	}
}

func (s *process) news(r reply) error {
	switch r.Event {
	case "open":
		s.addr = r.Addr
		close(s.opened)
	case "no multicast":
		s.mu.Lock()
		s.noMulticast = r.Key
		s.mu.Unlock()
	default:
		return errors.New(r.Error)
	}
	return nil
}

// send makes a request. Its replies go to each, one after another, from another
// goroutine; wait returns the last.
func (s *process) send(r request, each func(reply)) (wait func(context.Context) (reply, error), err error) {
	last := make(chan reply, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	r.ID = s.lastID
	s.pending[r.ID] = func(r reply) {
		if r.Last {
			last <- r
		} else if each != nil {
			each(r)
		}
	}
	if err := json.NewEncoder(s.in).Encode(r); err != nil {
		return nil, fmt.Errorf("%s: ask for %s: %w", s.name, r.Do, err)
	}
	return func(ctx context.Context) (reply, error) { return s.wait(ctx, r, last) }, nil
}

func (s *process) wait(ctx context.Context, r request, last chan reply) (reply, error) {
	select {
	case answer := <-last:
		if answer.Error != "" {
			return answer, fmt.Errorf("%s: %s: %s", s.name, r.Do, answer.Error)
		}
		return answer, nil
	case <-s.gone:
		return reply{}, fmt.Errorf("%s: ended during %s: %w%s", s.name, r.Do, s.err, s.lastWords())
	case <-ctx.Done():
		return reply{}, fmt.Errorf("%s: %s: %w", s.name, r.Do, context.Cause(ctx))
	}
}

// call makes a request and waits for the last reply.
func (s *process) call(ctx context.Context, r request, each func(reply)) (reply, error) {
	wait, err := s.send(r, each)
	if err != nil {
		return reply{}, err
	}
	return wait(ctx)
}

// open waits until the replica takes requests.
func (s *process) open(ctx context.Context) error {
	select {
	case <-s.opened:
		return nil
	case <-s.gone:
		return fmt.Errorf("%s: did not start: %w%s", s.name, s.err, s.lastWords())
	case <-ctx.Done():
		return fmt.Errorf("%s: start: %w", s.name, context.Cause(ctx))
	}
}

// lastWords returns the last lines of the replica's log.
func (s *process) lastWords() string {
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil || len(log) == 0 {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	return "; its log ends with:\n" + string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}

// kill is kill -9. It returns when the process has ended and all its replies have been
// read.
func (s *process) kill() error {
	if err := s.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", s.name, err)
	}
	<-s.gone
	return nil
}

// stopPatience is how long a replica may take to close its database.
const stopPatience = 20 * time.Second

// stop ends the replica's input, upon which it closes its database and exits.
func (s *process) stop() error {
	select {
	case <-s.gone:
		return nil // killed, or its end was reported when it happened
	default:
	}
	s.in.Close()
	select {
	case <-s.gone:
		if s.err != nil {
			return fmt.Errorf("%s: close: %w%s", s.name, s.err, s.lastWords())
		}
		return nil
	case <-time.After(stopPatience):
		return errors.Join(fmt.Errorf("%s: did not close within %v, killed", s.name, stopPatience), s.kill())
	}
}
