package mdns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
)

// Link is an interface that multicast may use.
//
// Invariant: it has an address, of a family for which v4 or v6 is set.
type Link struct {
	Iface    net.Interface
	addrs    []netip.Addr
	v4, v6   bool
	loopback bool
}

// paths returns the ways to ask on l. Loopback is asked over IPv4 only: Linux has
// no route for ff02::fb there.
func (l Link) paths() []path {
	var p []path
	if l.v4 {
		p = append(p, path{l.Iface.Name, false})
	}
	if l.v6 && !l.loopback {
		p = append(p, path{l.Iface.Name, true})
	}
	return p
}

// ChooseLinks looks up the interfaces as they are now. If local is set they are
// the loopback ones. The error says what is missing.
func ChooseLinks(o Config, local bool) ([]Link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var links []Link
	for _, i := range all {
		if !wantsInterface(o, local, i.Name, i.Flags) {
			continue
		}
		l := Link{Iface: i, loopback: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				ip, _ := netip.AddrFromSlice(n.IP)
				ip = ip.Unmap()
				l.addrs = append(l.addrs, ip)
				l.v4, l.v6 = l.v4 || ip.Is4(), l.v6 || ip.Is6()
			}
		}
		if len(l.paths()) > 0 {
			links = append(links, l)
		}
	}
	switch {
	case len(links) > 0:
		return links, nil
	case local:
		return nil, errors.New("the loopback interface is down or has no IPv4 address")
	case len(o.Interfaces) > 0:
		return nil, fmt.Errorf("no interface of %q is up and has an address", o.Interfaces)
	}
	return nil, errors.New("no interface but loopback is up, can multicast and has an address (see MulticastOptions.Loopback)")
}

// wantsInterface decides by name and flags. On Linux loopback has no
// MULTICAST flag although it works, so it is not asked of what was named.
func wantsInterface(o Config, local bool, name string, f net.Flags) bool {
	loopback := f&net.FlagLoopback != 0
	switch {
	case f&net.FlagUp == 0:
		return false
	case local:
		return loopback
	case loopback && o.Loopback, slices.Contains(o.Interfaces, name):
		return true
	}
	return len(o.Interfaces) == 0 && !loopback && f&net.FlagMulticast != 0 && f&net.FlagPointToPoint == 0
}

// askLoopback asks on a loopback interface without the library's client, which
// joins the group on the interface of the default route whatever it was told:
// that fails where there is no such route, and elsewhere has a replica that
// is meant for this machine alone speak IGMP to the network. Nothing need be
// joined to ask: answers come by unicast.
func askLoopback(ctx context.Context, l Link) ([]answer, error) {
	i := slices.IndexFunc(l.addrs, netip.Addr.Is4)
	// Bound to the address, for from 0.0.0.0 a question on loopback has no sender.
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: l.addrs[i].AsSlice()})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	p := ipv4.NewPacketConn(conn)
	if err := errors.Join(p.SetMulticastInterface(&l.Iface), p.SetMulticastLoopback(true)); err != nil {
		return nil, err
	}
	q := new(dns.Msg).SetQuestion(mdnsService+".local.", dns.TypePTR)
	q.RecursionDesired = false
	packet, err := q.Pack()
	if err != nil {
		return nil, err
	}
	if _, err := conn.WriteToUDP(packet, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}); err != nil {
		return nil, err
	}
	conn.SetReadDeadline(time.Now().Add(mdnsTimeout))
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	return readAnswers(conn), nil
}

// readAnswers reads until the deadline, or until there is more than anyone
// should have to say.
func readAnswers(conn *net.UDPConn) []answer {
	var answers []answer
	buf := make([]byte, 9000) // RFC 6762, section 17: the greatest mDNS packet
	for range 4 * MaxFound {
		n, _, err := conn.ReadFromUDP(buf)
		if err != nil {
			break
		}
		var m dns.Msg
		if m.Unpack(buf[:n]) != nil || !m.Response {
			continue
		}
		for _, rr := range append(m.Answer, m.Extra...) {
			if t, ok := rr.(*dns.TXT); ok {
				answers = append(answers, answer{name: t.Hdr.Name, txt: t.Txt})
			}
		}
	}
	return answers
}
