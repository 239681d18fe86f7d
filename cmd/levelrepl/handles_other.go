//go:build !unix

package main

// handleLimit is how many files and connections this process may have open, or 0 if
// that is not known.
func handleLimit() int { return 0 }
