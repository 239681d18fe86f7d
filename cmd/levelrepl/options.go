package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/level-replicator/replicator"
)

// serving is one run of serve: its flags, and what follows from them.
type serving struct {
	*app
	o replicator.Options // what flags set directly

	// Data.
	resolver                string
	local                   []string
	sync                    bool
	writeBuffer, blockCache int // of goleveldb

	// Peers: where they are, and what they must prove.
	multicast              bool
	interfaces, dns        []string
	compression            string
	secret                 string
	oldSecrets             []string
	tlsCert, tlsKey, tlsCA string

	// HTTP.
	http                    string
	httpInsecure            bool
	httpConns, httpInFlight int

	// Log.
	logLevel string
	logJSON  bool

	// What follows from the flags.
	given   func(flag string) bool // it is on the command line
	again   func()                 // reads files of secrets or certificates again; nil if there are none
	handler slog.Handler
}

func (s *serving) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.o.Listen, "listen", "127.0.0.1:9000", "`address` to accept peers on; port 0 picks a free one")
	f.StringVar(&s.o.Advertise, "advertise", "", "`host:port` that peers should dial (default: as they see this replica)")
	f.StringVar(&s.o.Name, "name", "", "name of this replica (default: the listen address, or HOSTNAME:PORT if it listens on any)")
	f.StringVar(&s.o.Cluster, "cluster", "", "replicas replicate only with replicas of the same cluster `name`")
	f.StringArrayVar(&s.o.Peers, "peer", nil, "`host:port` of another replica; repeatable, one is enough")
	f.BoolVar(&s.multicast, "multicast", false, "find peers on the local network")
	f.StringArrayVar(&s.interfaces, "interface", nil, "network interface `name` for --multicast; repeatable (default: all)")
	f.StringArrayVar(&s.dns, "dns", nil, "find peers by DNS: `name`:port, or _service._tcp.name for SRV records; repeatable")
	f.StringVar(&s.secret, "secret-file", "", "`file` with the cluster's secret, made by levelrepl secret")
	f.StringArrayVar(&s.oldSecrets, "old-secret-file", nil, "`file` with a secret that is accepted too, while it is being changed; repeatable")
	f.StringVar(&s.tlsCert, "tls-cert", "", "certificate `file` (PEM), instead of a secret; with --tls-key and --tls-ca")
	f.StringVar(&s.tlsKey, "tls-key", "", "private key `file` (PEM)")
	f.StringVar(&s.tlsCA, "tls-ca", "", "`file` (PEM) with the authorities that sign the peers' certificates")
	f.BoolVar(&s.o.Insecure, "insecure", false, "accept peers beyond loopback without secret or TLS")
	f.StringVar(&s.resolver, "resolver", "highest-clock", "what reads of keys in conflict return: highest-clock or last-write-wins")
	f.StringArrayVar(&s.local, "local", nil, "key `prefix` that is neither logged nor sent; repeatable, the same each time")
	f.BoolVar(&s.o.Follower, "follower", false, "pull what others write and refuse writes here")
	f.BoolVar(&s.sync, "sync", false, "bring every write, own or pulled, to disk before it is acknowledged")
	f.StringVar(&s.http, "http", defaultAddr, "`address` to answer HTTP on; off for none")
	f.BoolVar(&s.httpInsecure, "http-insecure", false, "answer HTTP beyond loopback, where anybody can then read and write")
	s.tuning(f)
	f.StringVar(&s.compression, "compress", "nothing", "compress what is sent: nothing, remote (to other machines) or all")
	f.StringVar(&s.logLevel, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&s.logJSON, "log-json", false, "log as JSON")
	_ = c.RegisterFlagCompletionFunc("resolver", completeResolver)
	_ = c.RegisterFlagCompletionFunc("compress", cobra.FixedCompletions([]string{"nothing", "remote", "all"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
}

func (s *serving) tuning(f *pflag.FlagSet) {
	o := &s.o
	f.DurationVar(&o.MinInterval, "min-interval", 20*time.Millisecond, "pause between rounds under steady writes")
	f.DurationVar(&o.MaxInterval, "max-interval", 10*time.Second, "pause between rounds when nothing changes")
	f.IntVar(&o.Fanout, "fanout", 4, "peers that a round talks to")
	f.DurationVar(&o.ReadyTimeout, "ready-timeout", 2*time.Second, "how long first writes wait for the first attempt to replicate")
	f.DurationVar(&o.TombstoneTTL, "tombstone-ttl", 7*24*time.Hour, "age at which a tombstone may be purged unconfirmed; negative: never")
	f.DurationVar(&o.PeerTTL, "peer-ttl", 14*24*time.Hour, "how long a peer that is not heard stays a member")
	f.DurationVar(&o.MaxClockSkew, "max-clock-skew", time.Minute, "how far in the future the time of a peer's write may be")
	size := func(n *int, name, def, what string) {
		*n = mustSize(def)
		f.Var((*size)(n), name, what)
	}
	size(&o.Limits.MaxValue, "max-value", "64MiB", "greatest value")
	size(&o.Limits.MaxKey, "max-key", "64KiB", "greatest key")
	size(&o.Limits.MaxInFlight, "max-in-flight", "64MiB", "bytes of received frames held in memory, over all sessions")
	size(&o.CacheSize, "cache-size", "0B", "memory for log-index entries of keys in use; 0: 32 MiB, more if there are many keys")
	size(&o.FilterSize, "filter-size", "64MiB", "memory for the filter that tells new keys from old ones")
	size(&s.writeBuffer, "write-buffer", "16MiB", "goleveldb's write buffer, of which there are two")
	size(&s.blockCache, "block-cache", "16MiB", "goleveldb's cache of blocks that were read")
	size(&o.Limits.ReadRate, "read-rate", "0B", "bytes per second taken in from peers; 0: no bound")
	size(&o.Limits.WriteRate, "write-rate", "0B", "bytes per second sent to peers; 0: no bound")
	f.IntVar(&o.Limits.MaxConns, "max-conns", 128, "connections accepted at once")
	f.IntVar(&o.Limits.MaxPending, "max-pending", 16, "those among them that are not authenticated yet")
	f.IntVar(&s.httpConns, "http-conns", 128, "connections of HTTP clients at once")
	size(&s.httpInFlight, "http-in-flight", "64MiB", "bytes of values in transit from and to HTTP clients")
	s.given = f.Changed
}

// size is a number of bytes on the command line: 1048576, 1MiB, 64KB.
type size int

func (s *size) String() string { return humanize.IBytes(uint64(*s)) }

// Type names the flag's value in help texts.
func (s *size) Type() string { return "size" }

// Set reads the flag.
func (s *size) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil {
		return errors.New("want a number of bytes, as 1048576, 64KiB or 1GB")
	}
	if most := uint64(min(1<<40, math.MaxInt)); n > most {
		return fmt.Errorf("%d bytes, want at most %d", n, most)
	}
	*s = size(n)
	return nil
}

// File handles of a replica beside those of tables and accepted connections: journals,
// manifest, compaction, connections that it dials, and those that it refuses.
const (
	spareHandles = 96
	tableHandles = 500 // goleveldb's own default
	leastHandles = 128
)

// fit divides the file handles that the process may have (0: unknown): connections get what
// the store leaves. Defaults shrink; what flags ask for has to fit. It returns how many
// tables the store may keep open.
func (s *serving) fit(o *replicator.Options, limit int) (tables int, err error) {
	if s.httpConns < 1 || s.httpInFlight < freeBytes {
		return 0, &usageError{fmt.Errorf("--http-conns %d --http-in-flight %d", s.httpConns, s.httpInFlight), fmt.Sprintf("want at least 1, and %d bytes", freeBytes)}
	}
	if limit == 0 {
		return tableHandles, nil
	}
	if limit < leastHandles {
		return 0, &hintedError{fmt.Errorf("this process may open %d files, a replica needs %d", limit, leastHandles), "ulimit -n, or LimitNOFILE= of systemd, sets that"}
	}
	tables = min(tableHandles, limit/2)
	shrink := func(flag string, n *int, share int) {
		if !s.given(flag) {
			*n = min(*n, max(share, 4))
		}
	}
	shrink("max-conns", &o.Limits.MaxConns, limit/8)
	shrink("max-pending", &o.Limits.MaxPending, limit/32)
	shrink("http-conns", &s.httpConns, limit/8)
	if s.http == "" || s.http == "off" {
		s.httpConns = 0
	}
	conns := o.Limits.MaxConns + o.Limits.MaxPending + s.httpConns
	// The store can do with fewer: it opens tables again then.
	tables = max(16, min(tables, limit-conns-min(spareHandles, limit/4)))
	if need := tables + conns + min(spareHandles, limit/4); need > limit {
		return 0, &usageError{fmt.Errorf("%d connections (--max-conns, --max-pending, --http-conns) leave the store no file handles: this process may have %d", conns, limit), "lower them, or raise the limit: ulimit -n, or LimitNOFILE= of systemd"}
	}
	return tables, nil
}

// What the store can do with: a batch of the replica's own has to fit into the write buffer.
const (
	leastWriteBuffer = 2 << 20
	leastBlockCache  = 1 << 20
)

func (s *serving) checkStore() error {
	if s.writeBuffer < leastWriteBuffer || s.blockCache < leastBlockCache {
		return &usageError{fmt.Errorf("--write-buffer %d --block-cache %d", s.writeBuffer, s.blockCache), fmt.Sprintf("want at least %s and %s", humanize.IBytes(leastWriteBuffer), humanize.IBytes(leastBlockCache))}
	}
	return nil
}

// storeOptions are goleveldb's, for a store that keeps so many tables open.
func (s *serving) storeOptions(tables int) *opt.Options {
	o := replicator.StoreOptions()
	o.OpenFilesCacheCapacity, o.WriteBuffer, o.BlockCacheCapacity = tables, s.writeBuffer, s.blockCache
	return o
}

func mustSize(text string) int {
	var s size
	if err := s.Set(text); err != nil {
		panic(err)
	}
	return int(s)
}

// options returns the Options that the flags describe.
func (s *serving) options() (*replicator.Options, error) {
	o := s.o
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(s.logLevel)); err != nil {
		return nil, &usageError{fmt.Errorf("--log-level %s", s.logLevel), "want debug, info, warn or error"}
	}
	s.handler = slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: level})
	if s.logJSON {
		s.handler = slog.NewJSONHandler(safeJSONWriter{s.err}, &slog.HandlerOptions{Level: level})
	}
	o.Logger, o.Sync = slog.New(s.handler), s.sync
	for _, name := range s.dns {
		o.Discover = append(o.Discover, replicator.DNS(name, nil))
	}
	if s.multicast {
		o.Discover = append(o.Discover, replicator.Multicast(&replicator.MulticastOptions{Interfaces: s.interfaces, Logger: o.Logger}))
	}
	err := errors.Join(s.setLocal(&o, s.local), setResolver(&o, s.resolver), setCompression(&o, s.compression), s.setSecrets(&o), s.setTLS(&o), s.checkListen(&o), s.checkStore())
	return &o, err
}

// checkListen returns the error that Replicate would, in terms of flags, before anything is
// opened.
func (s *serving) checkListen(o *replicator.Options) error {
	if o.GetSecrets != nil || o.GetTLS != nil || o.Insecure {
		return nil
	}
	addr, err := net.ResolveTCPAddr("tcp", o.Listen)
	if err != nil {
		return &usageError{fmt.Errorf("--listen %s: %w", o.Listen, err), `give "host:port"`}
	}
	if !isLoopback(addr) {
		return &usageError{fmt.Errorf("--listen %s is reachable from elsewhere, and nothing keeps strangers out", o.Listen), "levelrepl secret FILE makes a secret; give it to all replicas with --secret-file FILE"}
	}
	return nil
}

var completeResolver = cobra.FixedCompletions([]string{"highest-clock", "last-write-wins"}, cobra.ShellCompDirectiveNoFileComp)

func setResolver(o *replicator.Options, name string) (err error) {
	o.Resolver, err = chosen("resolver", name, map[string]replicator.Resolver{
		"highest-clock": replicator.HighestClock, "last-write-wins": replicator.LastWriteWins,
	}, "want highest-clock or last-write-wins; a resolver of your own needs a program of your own")
	return err
}

func setCompression(o *replicator.Options, name string) (err error) {
	o.Compression, err = chosen("compress", name, map[string]replicator.Compression{
		"nothing": replicator.NoCompression, "remote": replicator.CompressRemote, "all": replicator.CompressAll,
	}, "want nothing, remote or all")
	return err
}

// chosen returns what a flag's value stands for.
func chosen[T any](flag, name string, among map[string]T, want string) (T, error) {
	v, ok := among[name]
	if !ok {
		return v, &usageError{fmt.Errorf("--%s %s", flag, name), want}
	}
	return v, nil
}
