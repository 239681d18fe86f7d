//go:build !linux

package main

// sentOver is not known here: only Linux is asked.
func sentOver([]int) (n int64, known bool) { return 0, false }
