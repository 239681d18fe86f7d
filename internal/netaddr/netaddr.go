// Package netaddr checks and takes apart addresses of the form "host:port".
package netaddr

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/level-replicator/replicator/internal/printable"
)

// Dialable reports whether an address from the network is worth a try.
func Dialable(addr string) bool {
	if CheckAddr(addr) != nil || CheckPort(addr) != nil {
		return false
	}
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return IsHostName(host)
	}
	// A zone would be one of another machine.
	unspecific := ip.Unmap().IsUnspecified() || ip.IsMulticast() || ip.Is6() && ip.IsLinkLocalUnicast()
	return !unspecific && ip.Zone() == ""
}

// IsHostName lets through what a DNS name for dialing is made of, and no
// control characters that would end up in logs and terminals.
func IsHostName(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

func WithoutZone(host string) string {
	host, _, _ = strings.Cut(host, "%")
	return host
}

func IsLoopbackAddr(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// PortOf is the port of an address that passed checkPort.
func PortOf(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return n
}

// CheckPort returns an error unless addr is "host:port" with a number that can be
// dialed; the host may be anything.
func CheckPort(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 {
		return fmt.Errorf("replicator: address %q, want \"host:port\" with a port of 1 to 65535", addr)
	}
	return nil
}

// BoundedIP returns the address that connections are counted by, or none for
// loopback and for what is no IP address: those are on this machine, where many
// replicas may share one address.
func BoundedIP(remote net.Addr) netip.Addr {
	ip, err := netip.ParseAddr(HostOf(remote.String()))
	if err != nil || ip.IsLoopback() {
		return netip.Addr{}
	}
	return ip.Unmap()
}

// CheckAddr returns an error unless addr is a "host:port" that can be dialed.
func CheckAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" || port == "0" || len(addr) > 255 || addr != printable.Printable(addr) {
		return fmt.Errorf("address %q, want \"host:port\"", addr)
	}
	return nil
}

// Reachable is where to dial a peer that says it listens at addr: an unspecified
// host is the one that we see it connect from, and so is one whose zone is missing.
func Reachable(addr string, remote net.Addr) string {
	if CheckPort(addr) != nil {
		return ""
	}
	host, port, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(WithoutZone(host)); host == "" || ip != nil && (ip.IsUnspecified() || ip.To4() == nil && ip.IsLinkLocalUnicast()) {
		var err error
		if host, _, err = net.SplitHostPort(remote.String()); err != nil {
			return ""
		}
		return net.JoinHostPort(host, port)
	}
	if !Dialable(addr) || IsLoopbackAddr(addr) && !IsLoopbackAddr(remote.String()) {
		return ""
	}
	return addr
}

// HostOf returns the host of "host:port" without an IPv6 zone, which no
// certificate can name.
func HostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	host, _, _ = strings.Cut(host, "%")
	return host
}

func IsLocal(addr net.Addr) bool {
	if strings.HasPrefix(addr.Network(), "unix") {
		return true
	}
	ip, err := netip.ParseAddr(HostOf(addr.String()))
	return err == nil && ip.IsLoopback()
}
