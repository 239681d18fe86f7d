package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// process is this program once more, to be killed.
type process struct {
	env *env
	cmd *exec.Cmd
	in  io.Writer
	out *json.Decoder
}

// startProcess starts the program with one more variable in its environment, by which it knows what to do.
func (e *env) startProcess(variable string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{env: e, cmd: exec.CommandContext(e.ctx, self)}
	p.cmd.Env = append(os.Environ(), variable)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(out)
	return p, p.cmd.Start()
}

// says waits for what the process says next.
func (p *process) says(what any) error {
	if err := p.out.Decode(what); err != nil {
		return fmt.Errorf("the process that is to be killed says nothing more: %w", err)
	}
	return nil
}

// kill kills the process after some time in which it goes on writing.
func (p *process) kill(after time.Duration) error {
	select {
	case <-p.env.ctx.Done():
	case <-time.After(after):
	}
	err := p.cmd.Process.Kill()
	if waited := p.cmd.Wait(); waited == nil {
		err = errors.Join(err, errors.New("the process that was to be killed has ended by itself"))
	}
	return err
}
