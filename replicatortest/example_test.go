package replicatortest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/level-replicator/replicator/replicatortest"
)

// Two hosts talk until the network splits.
func ExampleNetwork() {
	network := replicatortest.NewNetwork(1)
	a, b := network.Host("a"), network.Host("b")

	listener, err := b.Listen("9000")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, conn)
	}()

	conn, err := a.Dial(context.Background(), "tcp", "b:9000")
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	answer := make([]byte, 5)
	io.ReadFull(conn, answer)
	fmt.Printf("%v says %s\n", conn.RemoteAddr(), answer)

	network.Partition([]string{"a"}, []string{"b"})
	_, err = conn.Read(answer)
	fmt.Println("reset:", errors.Is(err, syscall.ECONNRESET))

	// Output:
	// b:9000 says hello
	// reset: true
}
