package replicator

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMachinesThatKnowOnlyTheNameOfAllReplicate has each resolve the name to its own address
// first, by a name server of its own.
func TestMachinesThatKnowOnlyTheNameOfAllReplicate(t *testing.T) {
	ns := bridged(t, 3, true, false, true)
	var ms []machine
	for i := range 3 {
		m := machine{Name: fmt.Sprint("m", i), Listen: "0.0.0.0:9000", Peers: []string{"app.test:9000"}, Server: fmt.Sprintf("10.77.0.%d:5300", i+1), Resolve: true}
		for j := range 3 {
			m.Records = append(m.Records, fmt.Sprintf("app.test. 0 IN A 10.77.0.%d", (i+j)%3+1))
		}
		ms = append(ms, m)
	}
	cs := machines(t, ns, ms...)
	t.Log(spread(t, cs, "named", 3))
	requireSameState(t, cs)
	for _, c := range cs {
		c.ask(t, "sync")
		require.Equal(t, "sync <nil> false", c.await(t, "sync"))
	}
	endAll(t, cs)
}

func TestMachineWhoseNameIsItsOwnSaysSo(t *testing.T) {
	ns := bridged(t, 1, true, false, true)
	cs := machines(t, ns, machine{Name: "m", Listen: "0.0.0.0:9000", Peers: []string{"app.test:9000"}, Server: "10.77.0.1:5300", Resolve: true,
		Records: []string{"app.test. 0 IN A 10.77.0.1"}})
	cs[0].ask(t, "sync")
	require.Equal(t, "sync replicator: nothing was replicated: every address that is known (app.test:9000) leads to this server itself true", cs[0].await(t, "sync"))
	endAll(t, cs)
}

// TestMachinesBehindOneAddressAreToldApart has three behind a router that translates their
// addresses to its own.
func TestMachinesBehindOneAddressAreToldApart(t *testing.T) {
	needNft(t)
	ns := namespaces(t, "hub", "rt", "h0", "h1", "h2")
	hub, rt, hidden := ns[0], ns[1], ns[2:]
	r := strings.NewReplacer("HUB", hub, "RT", rt)
	ip(t, r.Replace(`-n HUB link set lo up
		-n RT link add up0 type veth peer name eth0 netns HUB
		-n HUB addr add 10.78.0.1/24 dev eth0
		-n HUB link set eth0 up
		-n RT addr add 10.78.0.2/24 dev up0
		-n RT link set up0 up`))
	for i, n := range hidden {
		r := strings.NewReplacer("NS", n, "RT", rt, "#", fmt.Sprint(i))
		ip(t, r.Replace(`-n NS link set lo up
			-n RT link add down# type veth peer name eth0 netns NS
			-n RT addr add 10.79.#.1/24 dev down#
			-n RT link set down# up
			-n NS addr add 10.79.#.2/24 dev eth0
			-n NS link set eth0 up
			-n NS route add default via 10.79.#.1`))
	}
	out, err := exec.Command("ip", "netns", "exec", rt, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward").CombinedOutput()
	require.NoError(t, err, "%s", out)
	nft(t, rt, "table ip nat {\nchain post {\ntype nat hook postrouting priority 100\noifname up0 masquerade\n}\n}\n")

	ms := []machine{{Name: "hub", Listen: "0.0.0.0:9000"}}
	for i := range hidden {
		ms = append(ms, machine{Name: fmt.Sprint("h", i), Listen: "0.0.0.0:9000", Peers: []string{"10.78.0.1:9000"}})
	}
	cs := machines(t, append([]string{hub}, hidden...), ms...)
	for round := range 3 {
		spread(t, cs, fmt.Sprint("round", round), 2)
		cs[0].ask(t, "replicated 3")
		cs[0].await(t, "replicated")
		cs[0].ask(t, "peers")
		require.Equal(t, "peers h0=ok h1=ok h2=ok", cs[0].await(t, "peers"))
	}
	requireSameState(t, cs)
	endAll(t, cs)
}
