//go:build !linux

package main

import "time"

// pace waits for times as close together as the runtime's timers allow.
type pace struct{}

func newPace() (*pace, error) { return &pace{}, nil }

func (*pace) wait(d time.Duration) error { time.Sleep(d); return nil }

func (*pace) close() error { return nil }
