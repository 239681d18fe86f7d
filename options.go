package replicator

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"time"

	"github.com/level-replicator/replicator/internal/netaddr"
	"github.com/level-replicator/replicator/internal/session"
	"github.com/level-replicator/replicator/internal/store"
	"github.com/level-replicator/replicator/internal/transport"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Options configures [Replicate]. The zero value of every field is its default,
// and a nil *Options is all defaults. Replicate copies the struct; it does not
// change it and later changes have no effect.
type Options struct {
	// The replica and its cluster.

	// Name is what this replica calls itself to peers, in Status and in logs.
	// Default: the listen address; with the host's name in it if that is any address.
	Name string

	// Cluster keeps apart what must not mix: replicas replicate only with
	// replicas of the same cluster name. Default: "". At most 64 bytes.
	Cluster string

	// Addresses, and sources of peers.

	// Listen is the TCP address to accept peers on. Default: "127.0.0.1:9000".
	// ":0" picks a free port, see [DB.Addr]. An address that is not loopback
	// needs Secret or TLS, or else Insecure.
	Listen string

	// Listener is used instead of Listen, and is taken over: Close closes it.
	Listener net.Listener

	// Advertise is the "host:port" that peers should dial. Default: the
	// address that they see us connect from, with our listening port.
	Advertise string

	// Dial connects to peers. Default: as net.Dialer.DialContext, which tries the
	// addresses of a name one after another. Your own had better ask [Avoid] of each.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Peers are the addresses of other replicas, each "host:port". One is enough:
	// replicas tell each other the addresses they know.
	Peers []string

	// Discover are further sources of peers: Multicast, DNS, your own.
	// All sources add up, and none that fails stops replication.
	Discover []Discoverer

	// Who may connect, and what connections carry.

	// Secret, shared by all replicas of a cluster, secures and authenticates all
	// connections by TLS 1.3. At least 16 bytes, generated ([GenerateSecret]),
	// never a password: who can connect can try to guess it offline.
	Secret []byte

	// OldSecrets are accepted beside Secret but never presented, so that a
	// secret can be changed one replica at a time, in three passes over all of
	// them, each of which leaves every pair able to talk: add the new one here;
	// make it Secret and put the old one here; leave the old one out. Two passes
	// would not do: who presents the new one is refused by who knows only the old.
	OldSecrets [][]byte

	// TLS is used instead of Secret, for dialing and accepting alike: it needs
	// certificates and a pool for both directions. It is cloned; TLS 1.3 and
	// verified client certificates are enforced.
	//
	// It holds as it was given. Its callbacks are called for each connection, and so can
	// renew certificates: GetCertificate for accepting, GetClientCertificate for dialing,
	// GetConfigForClient for ClientCAs as well. GetTLS renews all of it, RootCAs included.
	//
	// Connections resume an earlier session of the same two replicas, unless SessionTicketsDisabled is
	// set. VerifyConnection and VerifyPeerCertificate decide about these, too, and are asked before
	// and during the handshake. A ClientSessionCache, if set, is used; the keys and
	// callbacks for tickets are not.
	TLS *tls.Config

	// GetTLS is used instead of TLS, and asked for each connection, dialed or accepted,
	// from many goroutines: return the same pointer as long as nothing has changed, and
	// another, to a new configuration, once certificates or authorities were renewed. If it
	// fails, or what it returns would be refused as TLS, what held before holds on, and
	// that is logged. Connections that are open are not affected.
	GetTLS func() (*tls.Config, error)

	// GetSecrets is used instead of Secret and OldSecrets, in the same way.
	GetSecrets func() (secret []byte, old [][]byte, err error)

	// Insecure permits plain TCP on addresses that are not loopback.
	Insecure bool

	// Compression says what is sent to peers in compressed form (S2): pages of
	// keys that are over 1 KiB, and the like. It saves a third or more of the bytes if
	// values compress, and costs processor time. Beware where one who writes values
	// can also watch the encrypted connection: how far values of others compress
	// beside his own reveals something about them. Default: NoCompression.
	Compression Compression

	// Rounds of sessions.

	// MinInterval and MaxInterval bound the pause between two rounds of
	// sessions: the first under steady writes, the second when nothing
	// changes. Defaults: 20 ms and 10 s.
	MinInterval, MaxInterval time.Duration

	// IdleTimeout is how long the connection to a peer stays open without news. While it
	// is open, writes are pushed over it as they are committed; afterwards the next
	// write dials again. Default: 2 s. Negative: connections are closed after
	// each session, and news waits for the next round.
	IdleTimeout time.Duration

	// Fanout is how many peers a round holds a session with. Default: 4.
	Fanout int

	// ReadyTimeout bounds how long the first writes wait for the first attempt
	// to replicate. Default: 2 s.
	ReadyTimeout time.Duration

	// Members, deletions and clocks.

	// TombstoneTTL is the age at which a deletion may be forgotten although
	// some member has not confirmed it. A peer that was away longer is
	// repaired, but a write it made meanwhile may return beside the deletion's
	// place. Default: 7 days. Negative: never by age.
	//
	// It is no least age: a deletion that all members have on disk is forgotten
	// then, however young. So it says nothing of how long a consumer of
	// [DB.Changes] may be away, as consumers are no members: one that was away
	// while a deletion was forgotten gets a Reset.
	TombstoneTTL time.Duration

	// PeerTTL is how long a peer that is not seen still counts as a member: its
	// last report holds back the forgetting of deletions. Default: 14 days.
	PeerTTL time.Duration

	// MaxClockSkew is how far in the future a peer's write may be stamped.
	// Beyond it the pull ends with ErrClockSkew and is tried again later;
	// nothing is dropped or altered. Default: 1 min.
	MaxClockSkew time.Duration

	// The database.

	// Resolver decides what a key in conflict shows. Default: HighestClock.
	Resolver Resolver

	// Sync has what is pulled from peers written with Sync, so that it is on
	// disk when it is acknowledged to them. Default: as goleveldb, not.
	Sync bool

	// LocalRanges are key ranges that are neither logged nor sent, and refused from
	// peers, so all replicas of a cluster need the same. The database keeps them, and
	// Replicate refuses others at a later opening: of a range that changed, keys would
	// be logged in part. docs/operations.md says how to change them.
	LocalRanges []*util.Range

	// Follower has all writes here refused with ErrFollower: this replica only
	// takes what others wrote. It still serves to others. Replicate refuses it on a
	// handle with data that was never logged, which would become writes.
	Follower bool

	// Bounds.

	// Limits bound what the replica accepts and how much it holds at once.
	Limits Limits

	// CacheSize bounds the memory for log-index entries of keys in use, in
	// bytes: with keys of 16 bytes about 45 for each. Overwriting a key whose entry
	// is not in the cache costs a read of the store. Default: 32 MiB, or 16 bytes for each
	// key in the database if that is more, at most 256 MiB. Negative: no cache.
	CacheSize int

	// FilterSize bounds the memory for a filter that tells new keys from old ones, in
	// bytes. It takes 2 to 4 bytes for each key in the database; with more keys than it has
	// room for, writing a new key costs a read of the store. Default: 64 MiB, enough for 33
	// million keys. Negative: no filter.
	FilterSize int

	// Reports, and the clock.

	// Logger gets changes of state, never keys or values. Default: slog.Default().
	Logger *slog.Logger

	// Events are called as things happen. Default: none.
	Events *Events

	// Now is the wall clock. Default: time.Now. Tests replace it.
	Now func() time.Time
}

// Limits bound what a replica accepts and how much it holds at once. The zero value of
// every field is its default.
type Limits struct {
	// MaxConns bounds the connections accepted at once, of which half at most stay open
	// after a session, see Options.IdleTimeout. Default: 128.
	MaxConns int

	// MaxPending bounds the connections among them whose peer has not yet introduced
	// itself, for which it has 5 s for the TLS handshake and 5 s for the hello. At most 4
	// come from one address other than loopback. When all places are taken, a
	// connection that has had one for a second loses it to a new one. Default: 16.
	MaxPending int

	// MaxInFlight bounds the bytes of received frames held in memory at once, over all
	// sessions. One session at a time may pass it with a single larger value. An eighth is
	// kept for sessions that hold little, so that small frames do not wait for large
	// values. At least 8 MiB. Default: 64 MiB.
	MaxInFlight int

	// MaxKey and MaxValue are the sizes in bytes of the largest key and value that a
	// caller or a peer may write. Defaults: 64 KiB, at most 1 MiB, and 64 MiB, at most
	// 1 GiB. What a peer holds beyond them is held back, and all else is taken: see
	// Status.HeldBack.
	MaxKey, MaxValue int

	// ReadRate and WriteRate bound the bytes per second that sessions receive and send,
	// over all peers together. At least 65536, as a peer gives up on a session that moves
	// less than 64 KiB in 10 s. Default: no bound.
	ReadRate, WriteRate int
}

// Events are called as things happen, each from the goroutine where it does:
// they must return soon and may not call Close. Nil functions are skipped.
type Events struct {
	// Session is called after each conversation with a peer. Of one that goes on live it is
	// called twice: once the session is over and the connection stays open, and when the
	// connection is closed, with what went over it in between. What Close cuts off is
	// not reported.
	Session func(SessionEvent)
	// Conflict is called when a key comes to have versions whose writers did
	// not know of each other and whose content differs.
	Conflict func(key []byte, versions []Version)
	// Resolved is called when a key that was in conflict no longer is.
	Resolved func(key []byte)
	// ResolverPanic is called when a resolver panicked; the default decided.
	ResolverPanic func(key []byte, recovered any)
	// Mismatch is called when a peer that claims the same knowledge holds
	// something else: Repaired versions had to come back. It means a damaged
	// store here or there.
	Mismatch func(peer string, repaired int)
	// Progress is called now and then during long work.
	Progress func(Progress)
	// Failed is called once, when the store failed to write.
	Failed func(error)
}

// SessionEvent describes one conversation with a peer.
type SessionEvent struct {
	Peer     string        // address
	Dialed   bool          // we called, not they
	Idle     bool          // both sides held the same already
	Live     bool          // a live session has ended: the connection had stayed open after a session that was reported before
	Pulled   int           // versions that came and were new here
	Served   int           // versions that were sent
	BytesIn  int64         //
	BytesOut int64         //
	Duration time.Duration //
	Err      error         // nil if it ended well
}

// Progress says how far long work has come. Pulls and repairs are reported when
// they take longer than a second.
type Progress struct {
	Work      Work          `json:"work"`
	Peer      string        `json:"peer"`      // for pull and repair
	Keys      int64         `json:"keys"`      // done so far; of a pull and a repair, versions
	Bytes     int64         `json:"bytes"`     // done so far; of a pull and a repair, on the network
	Total     int64         `json:"total"`     // of them in all, or at most if some were overwritten since; 0 if unknown
	Remaining time.Duration `json:"remaining"` // estimate, 0 if unknown
	Done      bool          `json:"done"`      // it has ended, well or not
}

// Work is a kind of long work.
type Work string

// The kinds of long work.
const (
	WorkAdopt  Work = "adopt"  // logging what was there before, or was written past the wrapper
	WorkCount  Work = "count"  // counting what the store holds, after an opening that followed a crash; see [DB.Counted]
	WorkSweep  Work = "sweep"  // deleting log entries that a power failure brought back; Keys are entries
	WorkPull   Work = "pull"   // pulling from a peer
	WorkRepair Work = "repair" // reconciling with a peer
	WorkVerify Work = "verify" // reading everything, for [DB.Verify] or [DB.Repair]
)

// longest bounds pauses, so that several of them and a jitter still are a duration:
// "never" may be written as the longest duration that there is.
const longest = 365 * 24 * time.Hour

// leastRate is ten times what a peer takes for a sign of life.
const leastRate = 64 << 10

// credentials are what the options say of security.
func (o *Options) credentials() transport.Credentials {
	return transport.Credentials{Cluster: o.Cluster, Secret: o.Secret, OldSecrets: o.OldSecrets, TLS: o.TLS, GetTLS: o.GetTLS, GetSecrets: o.GetSecrets, Log: o.Logger}
}

// withDefaults returns a copy with every default filled in, or says what is
// wrong with the options.
func (o *Options) withDefaults() (Options, error) {
	var c Options
	if o != nil {
		c = *o
	}
	c.fillIn()
	c.MinInterval, c.MaxInterval = min(c.MinInterval, longest), min(c.MaxInterval, longest)
	if err := c.check(); err != nil {
		return c, err
	}
	c.LocalRanges = store.NormalRanges(c.LocalRanges)
	return c, nil
}

// fillIn replaces zeros by defaults.
func (c *Options) fillIn() {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:9000"
	}
	if c.Resolver == nil {
		c.Resolver = HighestClock
	}
	if c.Dial == nil {
		c.Dial = dialer.DialContext
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Events == nil {
		c.Events = &Events{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	duration := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	duration(&c.MinInterval, 20*time.Millisecond)
	duration(&c.MaxInterval, 10*time.Second)
	duration(&c.IdleTimeout, 2*time.Second)
	duration(&c.ReadyTimeout, 2*time.Second)
	duration(&c.TombstoneTTL, 7*24*time.Hour)
	duration(&c.PeerTTL, 14*24*time.Hour)
	duration(&c.MaxClockSkew, time.Minute)
	number := func(n *int, def int) {
		if *n == 0 {
			*n = def
		}
	}
	number(&c.Fanout, 4)
	number(&c.Limits.MaxValue, 64<<20)
	number(&c.Limits.MaxKey, 64<<10)
	number(&c.Limits.MaxConns, 128)
	number(&c.Limits.MaxPending, 16)
	number(&c.Limits.MaxInFlight, 64<<20)
	number(&c.FilterSize, 64<<20)
}

// check returns all that is wrong with the options.
func (c *Options) check() error {
	return errors.Join(slices.Concat(c.checkNames(), c.checkDurations(), c.checkNumbers(), c.checkSecurity(), c.checkNils())...)
}

// badOption says what is wrong with one field.
func badOption(field, format string, args ...any) error {
	return fmt.Errorf("replicator: Options."+field+": "+format, args...)
}

func (c *Options) checkNames() (errs []error) {
	if len(c.Cluster) > 64 {
		errs = append(errs, badOption("Cluster", "%d bytes, want at most 64", len(c.Cluster)))
	}
	if len(c.Name) > 255 {
		errs = append(errs, badOption("Name", "%d bytes, want at most 255", len(c.Name)))
	}
	for _, p := range c.Peers {
		if err := netaddr.CheckAddr(p); err != nil {
			errs = append(errs, badOption("Peers", "%v", err))
		}
	}
	if c.Advertise != "" {
		if err := netaddr.CheckAddr(c.Advertise); err != nil {
			errs = append(errs, badOption("Advertise", "%v", err))
		}
	}
	return errs
}

func (c *Options) checkDurations() (errs []error) {
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"MinInterval", c.MinInterval}, {"MaxInterval", c.MaxInterval}, {"ReadyTimeout", c.ReadyTimeout},
		{"PeerTTL", c.PeerTTL}, {"MaxClockSkew", c.MaxClockSkew}} {
		if f.d < 0 {
			errs = append(errs, badOption(f.name, "%v, want no negative duration", f.d))
		}
	}
	if c.MinInterval > c.MaxInterval {
		errs = append(errs, badOption("MinInterval", "%v, want at most MaxInterval, which is %v", c.MinInterval, c.MaxInterval))
	}
	return errs
}

func (c *Options) checkNumbers() (errs []error) {
	for _, f := range []struct {
		name     string
		n, limit int
	}{{"Fanout", c.Fanout, 1 << 20}, {"Limits.MaxValue", c.Limits.MaxValue, 1 << 30}, {"Limits.MaxKey", c.Limits.MaxKey, 1 << 20}, {"Limits.MaxConns", c.Limits.MaxConns, 1 << 20},
		{"Limits.MaxPending", c.Limits.MaxPending, 1 << 20}, {"Limits.MaxInFlight", c.Limits.MaxInFlight, min(1<<40, math.MaxInt)}} {
		if f.n < 0 || f.n > f.limit {
			errs = append(errs, badOption(f.name, "%d, want 1 to %d", f.n, f.limit))
		}
	}
	if c.Compression < NoCompression || c.Compression > CompressAll {
		errs = append(errs, badOption("Compression", "%d, want NoCompression, CompressRemote or CompressAll", c.Compression))
	}
	if c.Limits.MaxInFlight >= 0 && c.Limits.MaxInFlight < 2*session.FrameCap {
		errs = append(errs, badOption("Limits.MaxInFlight", "%d, want at least %d", c.Limits.MaxInFlight, 2*session.FrameCap))
	}
	for _, f := range []struct {
		name string
		rate int
	}{{"Limits.ReadRate", c.Limits.ReadRate}, {"Limits.WriteRate", c.Limits.WriteRate}} {
		if f.rate != 0 && f.rate < leastRate {
			errs = append(errs, badOption(f.name, "%d, want 0 for no bound or at least %d bytes per second", f.rate, leastRate))
		}
	}
	return errs
}

func (c *Options) checkSecurity() (errs []error) {
	if c.TLS != nil && c.Secret != nil {
		errs = append(errs, badOption("Secret", "set beside TLS, want one of the two"))
	}
	if c.GetTLS != nil && (c.TLS != nil || c.Secret != nil || c.OldSecrets != nil || c.GetSecrets != nil) {
		errs = append(errs, badOption("GetTLS", "set beside TLS, Secret or GetSecrets, want one of them"))
	}
	if c.GetSecrets != nil && (c.TLS != nil || c.Secret != nil || c.OldSecrets != nil) {
		errs = append(errs, badOption("GetSecrets", "set beside TLS or Secret, want one of them"))
	}
	for i, s := range append([][]byte{c.Secret}, c.OldSecrets...) {
		if s == nil && i == 0 && len(c.OldSecrets) == 0 {
			continue
		}
		if len(s) < transport.LeastSecret {
			name := "Secret"
			if i > 0 {
				name = "OldSecrets"
			}
			errs = append(errs, badOption(name, "%d bytes, want at least %d (see GenerateSecret)", len(s), transport.LeastSecret))
		}
	}
	return errs
}

func (c *Options) checkNils() (errs []error) {
	if slices.Contains(c.Discover, nil) {
		errs = append(errs, badOption("Discover", "holds a nil Discoverer"))
	}
	if slices.Contains(c.LocalRanges, nil) {
		errs = append(errs, badOption("LocalRanges", "holds a nil range"))
	}
	return errs
}

// GenerateSecret returns 32 random bytes for [Options].Secret. Make one for
// a cluster, keep it where other secrets are kept, and give it to every replica.
//
// A word that somebody thought of will not do in its place: whoever can connect
// sees a public key made from the secret and can try words against it offline,
// as fast as their machines allow.
func GenerateSecret() []byte {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails: see crypto/rand
	return secret
}
