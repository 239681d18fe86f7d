package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// namespaces are network namespaces with an interface each, joined by a bridge in another.
type namespaces struct {
	bridge string
	names  []string
}

// mostNamespaces is how many addresses the network has.
const mostNamespaces = 250

// errNoNamespaces is that of a machine or a user that cannot make them.
var errNoNamespaces = errors.New("needs Linux and root to make network namespaces")

// newNamespaces makes n of them. What was made before an error is for remove, too.
func newNamespaces(n int) (*namespaces, error) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return &namespaces{}, errNoNamespaces
	}
	if n > mostNamespaces {
		return &namespaces{}, fmt.Errorf("%d namespaces, want at most %d", n, mostNamespaces)
	}
	s := &namespaces{bridge: fmt.Sprintf("soak%d", os.Getpid())}
	if err := ip("", "netns add "+s.bridge); err != nil {
		return &namespaces{}, fmt.Errorf("%w: %w", errNoNamespaces, err)
	}
	for i := range n {
		s.names = append(s.names, fmt.Sprintf("%s-%d", s.bridge, i))
	}
	lines := []string{"link add br0 type bridge", "link set br0 up"}
	for i, name := range s.names {
		if err := ip("", "netns add "+name); err != nil {
			return s, err
		}
		lines = append(lines,
			fmt.Sprintf("link add p%d type veth peer name eth0 address %s netns %s", i, hardware(i), name),
			fmt.Sprintf("link set p%d master br0 up", i))
	}
	if err := ip(s.bridge, lines...); err != nil {
		return s, err
	}
	for i := range s.names {
		if err := s.configure(i); err != nil {
			return s, err
		}
	}
	return s, nil
}

// configure gives a namespace its address. All neighbours are permanent: the kernel keeps no
// more than 1,024 of the others, over all namespaces together.
func (s *namespaces) configure(i int) error {
	lines := []string{"link set lo up", "addr add " + s.host(i) + "/24 dev eth0", "link set eth0 up"}
	for j := range s.names {
		if j != i {
			lines = append(lines, fmt.Sprintf("neigh add %s lladdr %s dev eth0 nud permanent", s.host(j), hardware(j)))
		}
	}
	return ip(s.names[i], lines...)
}

func (s *namespaces) host(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }

func hardware(i int) string { return fmt.Sprintf("02:00:0a:4d:00:%02x", i+1) }

func (s *namespaces) remove() {
	for _, name := range s.names {
		_ = ip("", "netns del "+name) // it may never have been made
	}
	if s.bridge != "" {
		_ = ip("", "netns del "+s.bridge)
	}
}

// ip runs lines of ip(8) commands in a namespace; "" is the one of this process.
func ip(namespace string, lines ...string) error {
	args := []string{"-batch", "-"}
	if namespace != "" {
		args = append([]string{"-n", namespace}, args...)
	}
	c := exec.Command("ip", args...)
	c.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %.300s", strings.Join(args, " "), err, out)
	}
	return nil
}
