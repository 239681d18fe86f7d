package main

import (
	"io"
	"net"
	"sync"
)

// network is the proxies in front of the replicas, and which pairs are cut off from each
// other.
type network struct {
	mu     sync.Mutex
	cut    map[[2]int]bool
	conns  map[net.Conn][2]int // the numbers of the dialer and the acceptor
	fronts []net.Listener
}

func newNetwork(replicas int) (*network, error) {
	n := &network{cut: map[[2]int]bool{}, conns: map[net.Conn][2]int{}}
	for range replicas {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		n.fronts = append(n.fronts, l)
	}
	return n, nil
}

func (n *network) addrs() (as []string) {
	for _, l := range n.fronts {
		as = append(as, l.Addr().String())
	}
	return as
}

// forward has a proxy pass connections on to a replica.
func (n *network) forward(to int, addr string) {
	for {
		c, err := n.fronts[to].Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var caller [1]byte
			if _, err := io.ReadFull(c, caller[:]); err != nil {
				return
			}
			way := [2]int{int(caller[0]), to}
			if !n.enter(c, way) {
				return
			}
			defer n.leave(c)
			s, err := net.Dial("tcp", addr)
			if err != nil {
				return
			}
			defer s.Close()
			go func() {
				io.Copy(s, c)
				s.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(c, s)
		}()
	}
}

func (n *network) enter(c net.Conn, way [2]int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[way] {
		return false
	}
	n.conns[c] = way
	return true
}

func (n *network) leave(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// partition cuts off from each other all replicas for which side differs, and reconnects
// all others.
func (n *network) partition(side func(replica int) int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.fronts {
		for j := range n.fronts {
			n.cut[[2]int{i, j}] = side(i) != side(j)
		}
	}
	for c, way := range n.conns {
		if n.cut[way] {
			c.Close()
		}
	}
}

func (n *network) heal() { n.partition(func(int) int { return 0 }) }
