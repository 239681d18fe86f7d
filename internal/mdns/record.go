package mdns

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/level-replicator/replicator/internal/causal"
	"github.com/level-replicator/replicator/internal/netaddr"
)

// Record is what a replica says of itself in the TXT record of its mDNS service:
// enough to tell before dialing that it is not ours. Anyone can forge one.
type Record struct {
	Cluster string // clusterHash
	origin  causal.Origin
	Addrs   []string // "host:port" each
	tls     bool
}

const (
	// The TXT record should travel in one small packet: RFC 6763, section 6.2.
	maxTXT = 400
	// MaxRecordAddrs bounds what one answer can make us dial.
	MaxRecordAddrs = 16
)

// ClusterHash stands for a cluster name where everyone can read it.
func ClusterHash(name string) string {
	sum := sha256.Sum256([]byte("replicator cluster\x00" + name))
	return hex.EncodeToString(sum[:8])
}

// Txt encodes h. All addresses are in it, since of A and AAAA records the
// library's client keeps the last of each. It is never empty, since an answer
// without TXT never gets through that client. Addresses that have no room are
// left out.
func (h Record) Txt() []string {
	txt := []string{"v=1", "cid=" + h.Cluster, "pid=" + h.origin.String()}
	if h.tls {
		txt = append(txt, "tls=1")
	}
	size := 0
	for _, s := range txt {
		size += 1 + len(s)
	}
	for _, a := range h.Addrs {
		s := "a=" + a
		if size += 1 + len(s); size > maxTXT || len(s) > 255 {
			break
		}
		txt = append(txt, s)
	}
	return txt
}

// ParseRecord decodes a TXT record, and reports whether it is one that this version
// understands. Unknown keys are for later versions to add; of a key that comes
// twice, but a, the first counts (RFC 6763, section 6.4).
func ParseRecord(txt []string) (Record, bool) {
	var h Record
	seen := make(map[string]string)
	for _, s := range txt {
		k, v, ok := strings.Cut(s, "=")
		if k == "a" && len(h.Addrs) < MaxRecordAddrs && (netaddr.Dialable(v) || linkLocal(v)) {
			h.Addrs = append(h.Addrs, v)
		}
		if _, twice := seen[k]; ok && !twice {
			seen[k] = v
		}
	}
	h.Cluster, h.tls = seen["cid"], seen["tls"] == "1"
	ok := seen["v"] == "1" && h.origin.UnmarshalText([]byte(seen["pid"])) == nil && len(h.Addrs) > 0
	return h, ok
}

// linkLocal reports whether addr is one of IPv6 that means something only on the link that
// it was heard on.
func linkLocal(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Port() != 0 && ap.Addr().Is6() && ap.Addr().IsLinkLocalUnicast() && ap.Addr().Zone() == ""
}

// answer is an mDNS answer as it came: anything on the network may have sent it,
// for any service, asked for or not.
type answer struct {
	name string
	txt  []string
	zone string // the interface that it came in on, as an IPv6 zone
}

// appendFound adds the addresses in answers of other replicas of our
// cluster. local says that the question went out on the loopback interface:
// only then does a loopback address mean this machine.
func appendFound(addrs []string, answers []answer, self Announced, local bool) []string {
	cluster := ClusterHash(self.Cluster)
	for _, a := range answers {
		if !strings.HasSuffix(strings.ToLower(a.name), "."+mdnsService+".local.") {
			continue
		}
		h, ok := ParseRecord(a.txt)
		if !ok || h.Cluster != cluster || h.origin == self.Origin {
			continue
		}
		for _, addr := range h.Addrs {
			if linkLocal(addr) {
				if a.zone == "" {
					continue
				}
				addr = withZone(addr, a.zone)
			}
			if (local || !netaddr.IsLoopbackAddr(addr)) && len(addrs) < MaxFound && !slices.Contains(addrs, addr) {
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

// advertised returns what peers should dial: addr if its host is specific, else
// its port at every address of the links. Link-local IPv6 addresses are given only if
// there are no others, since who hears of one must be on the same link; the zone, which
// means nothing elsewhere, is left out. Loopback addresses are the last resort.
func advertised(addr string, links []Link) []string {
	host, port, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	if host != "" && (err != nil || !ip.IsUnspecified()) {
		return []string{net.JoinHostPort(netaddr.WithoutZone(host), port)}
	}
	var far, here, near []string
	for _, l := range links {
		for _, a := range l.addrs {
			switch s := net.JoinHostPort(a.String(), port); {
			case a.Is6() && ip.Is4():
			case a.Is6() && a.IsLinkLocalUnicast():
				here = append(here, net.JoinHostPort(netaddr.WithoutZone(a.String()), port))
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

// hostIPs returns the hosts among addrs that are IP addresses.
func hostIPs(addrs []string) []net.IP {
	var ips []net.IP
	for _, a := range addrs {
		if ap, err := netip.ParseAddrPort(a); err == nil {
			ips = append(ips, ap.Addr().Unmap().AsSlice())
		}
	}
	return ips
}
