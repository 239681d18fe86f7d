//go:build unix

package main

import "syscall"

// handleLimit is how many files and connections this process may have open, or 0 if
// that is not known. Go has raised it to what is allowed already.
func handleLimit() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int(min(uint64(limit.Cur), 1<<30))
}
