package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// finish compares the contents of all replicas byte by byte, and with what was
// acknowledged, and closes them.
func (s *soak) finish(ctx context.Context) error {
	s.all("pause")
	if err := s.check(ctx); err != nil {
		return err
	}
	s.all("pause")
	for {
		_, same, err := s.reports(ctx)
		if err != nil {
			return err
		}
		if same {
			break
		}
	}
	if _, err := s.ask(ctx, "dump"); err != nil {
		return err
	}
	keys := 0
	for i, p := range s.replicas {
		if err := p.stop(); err != nil {
			return err
		}
		p.ended = nil
		n, err := sameFiles(dumpPath(s.replicas[0].conf.Dir), dumpPath(p.conf.Dir))
		if err != nil {
			return fmt.Errorf("replicas 0 and %d: %w", i, err)
		}
		keys = n
	}
	writes, opened, err := s.acknowledged()
	if err != nil {
		return err
	}
	slices.Sort(opened)
	fmt.Printf("soak: %d checks, slowest agreement %v; %d writes, %d kills, %d stops, %d partitions; %d keys equal byte by byte on %d replicas; no acknowledged write lost; %d openings, %v at p99\n",
		s.checks, s.longest.Round(time.Millisecond), writes, s.kills, s.stops, s.partitions, keys, len(s.replicas), len(opened), opened[(len(opened)*99-1)/100].Round(time.Millisecond))
	return s.failures()
}

// sameFiles compares two dumps and counts their lines.
func sameFiles(a, b string) (lines int, err error) {
	fa, err := os.ReadFile(a)
	if err != nil {
		return 0, err
	}
	fb, err := os.ReadFile(b)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(fa, fb) {
		return 0, fmt.Errorf("contents differ: compare %s and %s", a, b)
	}
	return bytes.Count(fa, []byte("\n")), nil
}

// acknowledged checks that each own key has at least the last acknowledged write.
func (s *soak) acknowledged() (writes int64, opened []time.Duration, err error) {
	f, err := os.Open(dumpPath(s.replicas[0].conf.Dir))
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	held := map[string]int64{}
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, nil, err
		}
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		key, _ := strconv.Unquote(k)
		value, _ := strconv.Unquote(v)
		number, _, _ := strings.Cut(value, "-")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil && strings.HasPrefix(key, "own/") {
			held[key] = n
		}
	}
	for _, p := range s.replicas {
		for key, n := range p.atLeast() {
			if held[key] < n {
				return 0, nil, fmt.Errorf("key %s holds write %d; write %d was acknowledged", key, held[key], n)
			}
		}
		writes, opened = writes+p.writes, append(opened, p.opened...)
	}
	return writes, opened, nil
}
