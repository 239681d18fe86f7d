package main

import "context"

func Example() {
	run(context.Background())
	// Output:
	// written at one, read at two: hello world
	// deleted at three, read at one: leveldb: not found
}
