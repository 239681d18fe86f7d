package system_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const namespaceChild = "REPLICATOR_TEST_NAMESPACE"

// namespaces makes network namespaces, removed when the test ends. All multicast
// that is not for loopback stays in there: tests never touch a real network.
func namespaces(t *testing.T, names ...string) []string {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("needs Linux and root to make network namespaces")
	}
	var made []string
	for _, n := range names {
		ns := fmt.Sprintf("repl%d%s", os.Getpid(), n)
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("cannot make network namespaces: %v %s", err, bytes.TrimSpace(out))
		}
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		made = append(made, ns)
	}
	return made
}

// ip runs lines of ip(8) commands.
func ip(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if args := strings.Fields(line); len(args) > 0 {
			out, err := exec.Command("ip", args...).CombinedOutput()
			require.NoError(t, err, "ip %s: %s", line, out)
		}
	}
}

// bridged makes namespaces "1", "2" … with an eth0 each, joined by a bridge.
func bridged(t *testing.T, count int, v4, v6, route bool) []string {
	names := []string{"sw"}
	for i := range count {
		names = append(names, fmt.Sprint(i+1))
	}
	ns := namespaces(t, names...)
	sw, ns := ns[0], ns[1:]
	// No snooping: the bridge would hold back what nobody has asked for yet.
	ip(t, "-n "+sw+" link add br0 type bridge mcast_snooping 0\n-n "+sw+" link set br0 up")
	for i, n := range ns {
		if !v6 {
			out, err := exec.Command("ip", "netns", "exec", n, "sh", "-c",
				"echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6").CombinedOutput()
			require.NoError(t, err, string(out))
		}
		r := strings.NewReplacer("SW", sw, "NS", n, "#", fmt.Sprint(i+1))
		ip(t, r.Replace(`-n NS link set lo up
			-n SW link add p# type veth peer name eth0 netns NS
			-n SW link set p# master br0 up`))
		if v6 {
			ip(t, r.Replace(`-n NS addr add fd77::#/64 dev eth0 nodad`))
		}
		if v4 {
			ip(t, r.Replace(`-n NS addr add 10.77.0.#/24 dev eth0`))
		}
		ip(t, r.Replace(`-n NS link set eth0 addrgenmode none
			-n NS link set eth0 up`))
		if route {
			ip(t, r.Replace(`-n NS route add 224.0.0.0/4 dev eth0`))
		}
	}
	for _, n := range ns {
		if v6 {
			awaitMulticast6(t, n)
		}
	}
	return ns
}

// awaitMulticast6 waits until eth0 takes part in IPv6 multicast. The kernel adds the route when it has noticed, some time
// after the device came up, that there is a carrier; nobody can join a group before.
func awaitMulticast6(t *testing.T, ns string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		out, err := exec.Command("ip", "-n", ns, "-6", "route", "show", "table", "all", "dev", "eth0").CombinedOutput()
		require.NoError(t, err, string(out))
		if bytes.Contains(out, []byte("ff00::/8")) {
			return
		}
		require.True(t, time.Now().Before(deadline), "eth0 has no multicast route: %s", out)
	}
}

// linked makes bridged namespaces that have nothing but link-local IPv6 addresses.
func linked(t *testing.T, count int) []string {
	ns := bridged(t, count, false, true, false)
	for i, n := range ns {
		r := strings.NewReplacer("NS", n, "#", fmt.Sprint(i+1))
		ip(t, r.Replace(`-n NS addr del fd77::#/64 dev eth0
			-n NS addr add fe80::#/64 dev eth0 nodad`))
	}
	return ns
}

// inside runs one test of this binary in a namespace: lines are what the child prints,
// and closing stdin ends it.
type inside struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	errs  bytes.Buffer
}

func startInside(t *testing.T, ns, test, arg string) *inside {
	c := &inside{cmd: exec.Command("ip", "netns", "exec", ns, os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.timeout=40s")}
	c.cmd.Env = append(os.Environ(), namespaceChild+"="+arg)
	c.cmd.Stderr = &c.errs
	var err error
	c.stdin, err = c.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	c.lines = bufio.NewScanner(out)
	require.NoError(t, c.cmd.Start())
	t.Cleanup(func() { c.stdin.Close(); c.cmd.Process.Kill(); c.cmd.Wait() })
	return c
}

// end has the child end and wants it to have passed.
func (c *inside) end(t *testing.T) {
	t.Helper()
	c.stdin.Close()
	var rest strings.Builder
	for c.lines.Scan() {
		rest.WriteString(c.lines.Text() + "\n")
	}
	require.NoError(t, c.cmd.Wait(), "%s%s", rest.String(), c.errs.String())
	require.Contains(t, rest.String(), "PASS")
	require.NotContains(t, c.errs.String(), "[ERR] mdns", "the library logs to the default logger")
	require.NotContains(t, c.errs.String(), "[INFO] mdns", "the library logs to the default logger")
}

// nft loads rules into a namespace, in a table of ours.
func nft(t *testing.T, ns, rules string) {
	t.Helper()
	c := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
	c.Stdin = strings.NewReader(rules)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func needNft(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, of the package nftables")
	}
}
