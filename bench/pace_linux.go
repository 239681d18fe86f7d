package main

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pace waits for times that are closer together than the millisecond to which the runtime
// rounds its own timers when nothing else happens.
type pace struct{ timer *os.File }

func newPace() (*pace, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &pace{os.NewFile(uintptr(fd), "timer")}, nil
}

func (p *pace) wait(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	raw, err := p.timer.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
	})
	if err != nil || setErr != nil {
		return errors.Join(err, os.NewSyscallError("timerfd_settime", setErr))
	}
	var expirations [8]byte
	_, err = p.timer.Read(expirations[:])
	return err
}

func (p *pace) close() error { return p.timer.Close() }
