// Package memberlist finds peers by gossip: SWIM as github.com/hashicorp/memberlist
// implements it. It is for fleets that outgrow lists of addresses and multicast: a replica
// needs the gossip address of one other, and learns of thousands, in other networks too, at
// a cost that does not grow with their number.
//
// It is a module of its own, so that programs that do not use it do not depend on
// hashicorp's library.
package memberlist

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/memberlist"

	"github.com/level-replicator/replicator"
)

// Options configures [New].
type Options struct {
	// Bind is the address to gossip on, by UDP and TCP. Port 0 picks a free one, see
	// [Members.Addr]. Default: "127.0.0.1:7946".
	Bind string

	// Advertise is the gossip address that others should use, an IP address and a
	// port. Default: as bound.
	Advertise string

	// Seeds are gossip addresses of other replicas, "host:port". One that answers is
	// enough. They are asked again each Interval, so that the two sides of a long
	// partition find each other.
	Seeds []string

	// Secret, at least 16 bytes and shared by all replicas, encrypts the gossip. It may be
	// that of replicator.Options. Default: in the clear. An address found is a hint in
	// either case: the handshake between replicas decides.
	Secret []byte

	// OldSecrets decrypt gossip, as Secret does, and encrypt none. They may be those of
	// replicator.Options, and a secret is changed in the same three passes: add the new
	// one here; make it Secret and put the old one here; leave the old one out.
	OldSecrets [][]byte

	// Interval is the pause between two reports of all members that are alive.
	// Default: 1 min.
	Interval time.Duration

	// Config is copied, then name, addresses, label, key, delegates and logger are
	// overwritten. Default: memberlist's for a LAN.
	Config *memberlist.Config

	// Logger gets the library's log at debug level, and a warning once while no seed
	// answers. Default: slog.Default().
	Logger *slog.Logger
}

// Members is a [replicator.Discoverer] for one replica. Its methods are safe for concurrent
// use.
type Members struct {
	o Options

	mu     sync.Mutex
	list   *memberlist.Memberlist // nil while Discover does not run
	roster *roster                // likewise
}

// New returns a source of peers, which does nothing until a replica runs it.
func New(o Options) *Members {
	o.Bind = cmp.Or(o.Bind, "127.0.0.1:7946")
	o.OldSecrets = slices.Clone(o.OldSecrets)
	o.Interval = cmp.Or(o.Interval, time.Minute)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Members{o: o}
}

// leaveTimeout is how long the others have to hear that a replica leaves.
const leaveTimeout = time.Second

// Discover joins the others and reports all live members until ctx ends, then announces
// that this replica leaves. It is no error if no seed answers: some replica is the first.
func (m *Members) Discover(ctx context.Context, self replicator.Self, found func(addr string)) error {
	live := &roster{self: self.Origin.String(), addrs: map[string]string{}, joined: make(chan struct{}, 1)}
	config, err := m.config(self, live)
	if err != nil {
		return err
	}
	list, err := memberlist.Create(config)
	if err != nil {
		return fmt.Errorf("memberlist: cannot gossip on %s: %w", m.o.Bind, err)
	}
	m.started(list, live)
	defer m.started(nil, nil)
	defer list.Shutdown()

	ticker := time.NewTicker(m.o.Interval)
	defer ticker.Stop()
	lonely := false
	for {
		lonely = m.join(list, lonely)
		for again := true; again; {
			for _, addr := range m.Live() {
				found(addr)
			}
			select {
			case <-ctx.Done():
				return list.Leave(leaveTimeout)
			case <-live.joined:
			case <-ticker.C:
				again = false
			}
		}
	}
}

// join asks one seed at random for members, or all of them while none are known. It reports
// whether no seed answered and there is still no other member.
func (m *Members) join(list *memberlist.Memberlist, lonely bool) bool {
	seeds := slices.Clone(m.o.Seeds)
	rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
	if list.NumMembers() > 1 {
		seeds = seeds[:min(1, len(seeds))]
	}
	if len(seeds) == 0 {
		return false
	}
	_, err := list.Join(seeds)
	if err != nil && list.NumMembers() == 1 && !lonely {
		m.o.Logger.Warn("memberlist: no seed answers; they are asked again", "error", err)
	}
	return err != nil && list.NumMembers() == 1
}

func (m *Members) started(list *memberlist.Memberlist, live *roster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list, m.roster = list, live
}

// Addr returns the gossip address, a seed for others. It is empty unless Discover runs.
func (m *Members) Addr() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list == nil {
		return ""
	}
	n := m.list.LocalNode()
	return net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port)))
}

// Live returns the replication addresses of all other live members, sorted.
func (m *Members) Live() []string {
	m.mu.Lock()
	live := m.roster
	m.mu.Unlock()
	if live == nil {
		return nil
	}
	return live.list()
}

// peerAddr returns the address to dial a member at: the one that it announces, with the
// host that it gossips from if that names none. It is empty if the member announces no
// usable one.
func peerAddr(n *memberlist.Node) string {
	host, port, err := net.SplitHostPort(string(n.Meta))
	if p, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || p == 0 {
		return ""
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = n.Addr.String()
	}
	return net.JoinHostPort(host, port)
}

func (m *Members) config(self replicator.Self, live *roster) (*memberlist.Config, error) {
	c := memberlist.DefaultLANConfig()
	if m.o.Config != nil {
		*c = *m.o.Config
	}
	c.Name = live.self
	c.Label = "replicator/" + self.Cluster // gossip of other clusters is not taken in
	c.Delegate, c.Events = meta(self.Addr), live
	c.LogOutput, c.Logger = nil, log.New(debugLog{m.o.Logger}, "", 0)
	var err error
	if c.BindAddr, c.BindPort, err = split("Bind", m.o.Bind); err != nil {
		return nil, err
	}
	c.AdvertisePort = c.BindPort
	if m.o.Advertise != "" {
		if c.AdvertiseAddr, c.AdvertisePort, err = split("Advertise", m.o.Advertise); err != nil {
			return nil, err
		}
	}
	c.SecretKey = nil
	if c.Keyring, err = m.keyring(self.Cluster); err != nil {
		return nil, err
	}
	if len(self.Addr) > memberlist.MetaMaxSize {
		return nil, errors.New("memberlist: the address of this replica is too long to gossip")
	}
	return c, nil
}

// keyring returns the keys derived from the secrets, or nil if there are none.
func (m *Members) keyring(cluster string) (*memberlist.Keyring, error) {
	if m.o.Secret == nil && len(m.o.OldSecrets) == 0 {
		return nil, nil
	}
	var keys [][]byte
	for i, secret := range append([][]byte{m.o.Secret}, m.o.OldSecrets...) {
		if len(secret) < 16 {
			field := "Secret"
			if i > 0 {
				field = fmt.Sprintf("OldSecrets[%d]", i-1)
			}
			return nil, fmt.Errorf("memberlist: Options.%s: %d bytes, want at least 16", field, len(secret))
		}
		// Never the secret itself: the key of the sessions comes from it, too.
		key, err := hkdf.Key(sha256.New, secret, nil, "replicator memberlist "+cluster, 32)
		if err != nil {
			return nil, fmt.Errorf("memberlist: cannot derive a key: %w", err)
		}
		keys = append(keys, key)
	}
	return memberlist.NewKeyring(keys, keys[0])
}

func split(field, addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err == nil {
		var n uint64
		n, err = strconv.ParseUint(text, 10, 16)
		port = int(n)
	}
	if err != nil {
		return "", 0, fmt.Errorf("memberlist: Options.%s: %q, want \"host:port\"", field, addr)
	}
	return cmp.Or(host, "0.0.0.0"), port, nil
}

// meta is the delegate that announces the address of this replica. It sends no messages.
type meta string

func (d meta) NodeMeta(int) []byte           { return []byte(d) }
func (meta) NotifyMsg([]byte)                {}
func (meta) GetBroadcasts(int, int) [][]byte { return nil }
func (meta) LocalState(bool) []byte          { return nil }
func (meta) MergeRemoteState([]byte, bool)   {}

// roster keeps the addresses of the live members. It is told of changes while the library
// holds its own lock; what [memberlist.Memberlist.Members] returns may change while it is read.
type roster struct {
	self   string        // name in the list
	joined chan struct{} // capacity 1: a member joined or changed

	mu    sync.Mutex
	addrs map[string]string // of other members, by name; Invariant: usable ones
}

// list returns the addresses, sorted.
func (r *roster) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Values(r.addrs))
}

func (r *roster) NotifyJoin(n *memberlist.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if addr := peerAddr(n); n.Name != r.self && addr != "" {
		r.addrs[n.Name] = addr
	} else {
		delete(r.addrs, n.Name)
	}
	select {
	case r.joined <- struct{}{}:
	default:
	}
}

func (r *roster) NotifyUpdate(n *memberlist.Node) { r.NotifyJoin(n) }

func (r *roster) NotifyLeave(n *memberlist.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.addrs, n.Name)
}

// debugLog passes the library's log on.
type debugLog struct{ *slog.Logger }

var _ io.Writer = debugLog{}

func (l debugLog) Write(p []byte) (int, error) {
	// Members choose their names.
	printable := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSpace(string(p)))
	l.Debug("memberlist: " + printable)
	return len(p), nil
}
