package replicator

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// hint is what a server says of itself in the TXT record of its mDNS service:
// enough to tell before dialing that it is not ours. Anyone can forge one.
type hint struct {
	cluster string // clusterHash
	origin  Origin
	addrs   []string // "host:port" each
	tls     bool
}

const (
	// The TXT record should travel in one small packet: RFC 6763, section 6.2.
	maxTXT = 400
	// maxHintAddrs bounds what one answer can make us dial.
	maxHintAddrs = 16
)

// clusterHash stands for a cluster name where everyone can read it.
func clusterHash(name string) string {
	sum := sha256.Sum256([]byte("replicator cluster\x00" + name))
	return hex.EncodeToString(sum[:8])
}

// txt encodes h. All addresses are in it, since of A and AAAA records the
// library's client keeps the last of each. It is never empty, since an answer
// without TXT never gets through that client. Addresses that have no room are
// left out.
func (h hint) txt() []string {
	txt := []string{"v=1", "cid=" + h.cluster, "pid=" + h.origin.String()}
	if h.tls {
		txt = append(txt, "tls=1")
	}
	size := 0
	for _, s := range txt {
		size += 1 + len(s)
	}
	for _, a := range h.addrs {
		s := "a=" + a
		if size += 1 + len(s); size > maxTXT || len(s) > 255 {
			break
		}
		txt = append(txt, s)
	}
	return txt
}

// parseHint decodes a TXT record, and tells whether it is one that this version
// understands. Unknown keys are for later versions to add; of a key that comes
// twice, but a, the first counts (RFC 6763, section 6.4).
func parseHint(txt []string) (hint, bool) {
	var h hint
	seen := make(map[string]string)
	for _, s := range txt {
		k, v, ok := strings.Cut(s, "=")
		if k == "a" && len(h.addrs) < maxHintAddrs && (dialable(v) || linkLocal(v)) {
			h.addrs = append(h.addrs, v)
		}
		if _, twice := seen[k]; ok && !twice {
			seen[k] = v
		}
	}
	h.cluster, h.tls = seen["cid"], seen["tls"] == "1"
	ok := seen["v"] == "1" && h.origin.UnmarshalText([]byte(seen["pid"])) == nil && len(h.addrs) > 0
	return h, ok
}

// dialable tells whether an address from the network is worth a try.
func dialable(addr string) bool {
	if checkAddr(addr) != nil || checkPort(addr) != nil {
		return false
	}
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return isHostName(host)
	}
	// A zone would be one of another machine.
	unspecific := ip.Unmap().IsUnspecified() || ip.IsMulticast() || ip.Is6() && ip.IsLinkLocalUnicast()
	return !unspecific && ip.Zone() == ""
}

// linkLocal reports whether addr is one of IPv6 that means something only on the link that
// it was heard on.
func linkLocal(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Port() != 0 && ap.Addr().Is6() && ap.Addr().IsLinkLocalUnicast() && ap.Addr().Zone() == ""
}

// isHostName lets through what a DNS name for dialing is made of, and no
// control characters that would end up in logs and terminals.
func isHostName(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// answer is an mDNS answer as it came: anything on the network may have sent it,
// for any service, asked for or not.
type answer struct {
	name string
	txt  []string
	zone string // the interface that it came in on, as an IPv6 zone
}

// appendHints adds the addresses in answers that are of other servers of our
// cluster. local says that the question went out on the loopback interface:
// only then does a loopback address mean this machine.
func appendHints(addrs []string, answers []answer, self announced, local bool) []string {
	cluster := clusterHash(self.cluster)
	for _, a := range answers {
		if !strings.HasSuffix(strings.ToLower(a.name), "."+mdnsService+".local.") {
			continue
		}
		h, ok := parseHint(a.txt)
		if !ok || h.cluster != cluster || h.origin == self.origin {
			continue
		}
		for _, addr := range h.addrs {
			if linkLocal(addr) {
				if a.zone == "" {
					continue
				}
				addr = withZone(addr, a.zone)
			}
			if (local || !isLoopbackAddr(addr)) && len(addrs) < maxHints && !slices.Contains(addrs, addr) {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// withZone puts the interface to an address that is linkLocal.
func withZone(addr, zone string) string {
	ap, _ := netip.ParseAddrPort(addr)
	return netip.AddrPortFrom(ap.Addr().WithZone(zone), ap.Port()).String()
}

// advertised gives what peers should dial: addr if its host is specific, else
// its port at every address of the links. Link-local IPv6 addresses are given only if
// there are no others, since who hears of one must be on the same link; the zone, which
// means nothing elsewhere, is left out. Loopback addresses are the last resort.
func advertised(addr string, links []link) []string {
	host, port, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	if host != "" && (err != nil || !ip.IsUnspecified()) {
		return []string{net.JoinHostPort(withoutZone(host), port)}
	}
	var far, here, near []string
	for _, l := range links {
		for _, a := range l.addrs {
			switch s := net.JoinHostPort(a.String(), port); {
			case a.Is6() && ip.Is4():
			case a.Is6() && a.IsLinkLocalUnicast():
				here = append(here, net.JoinHostPort(withoutZone(a.String()), port))
			case a.IsLoopback():
				near = append(near, s)
			default:
				far = append(far, s)
			}
		}
	}
	switch {
	case len(far) > 0:
		return far
	case len(here) > 0:
		return here
	}
	return near
}

func withoutZone(host string) string {
	host, _, _ = strings.Cut(host, "%")
	return host
}

// hostIPs gives the hosts among addrs that are IP addresses.
func hostIPs(addrs []string) []net.IP {
	var ips []net.IP
	for _, a := range addrs {
		if ap, err := netip.ParseAddrPort(a); err == nil {
			ips = append(ips, ap.Addr().Unmap().AsSlice())
		}
	}
	return ips
}

func isLoopbackAddr(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// portOf is the port of an address that passed checkPort.
func portOf(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return n
}

// checkPort tells whether addr is "host:port" with a number that can be
// dialed; the host may be anything.
func checkPort(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 {
		return fmt.Errorf("replicator: address %q, want \"host:port\" with a port of 1 to 65535", addr)
	}
	return nil
}
