package replicator

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/level-replicator/replicator/internal/causal"
)

// maxAttempts bounds the addresses of one name that a call tries.
const maxAttempts = 8

var (
	errAvoided = errors.New("the address has led nowhere a moment ago")
	errNoOther = errors.New("the name leads to this replica itself, and no other address of it answers")
	errNoLeft  = errors.New("an address of the name led to this replica itself, or to nobody who would talk, a moment ago; and no other one answers")
)

// avoided are addresses that a peer's name has, and that led to this replica itself, or to
// nobody who would talk to us; each until it is tried again.
type avoided map[string]time.Time

// detour goes along with a call of Options.Dial.
type detour struct {
	avoid          avoided
	tried, skipped atomic.Int32
}

type detourKey struct{}

// Avoid reports whether a function for [Options].Dial should pass over an address that it
// found for a name, "host:port" with an IP address: a moment ago it led to this replica
// itself, or to nobody who would talk to us, and the name may have others. If none is
// left, Dial returns an error. One that does not ask is called again at the usual pauses.
func Avoid(ctx context.Context, addr string) bool {
	d, ok := ctx.Value(detourKey{}).(*detour)
	if !ok {
		return false
	}
	if _, avoid := d.avoid[addr]; avoid {
		d.skipped.Add(1)
		return true
	}
	d.tried.Add(1)
	return false
}

// dialer is the default of Options.Dial.
var dialer = net.Dialer{
	ControlContext: func(ctx context.Context, _, addr string, _ syscall.RawConn) error {
		if Avoid(ctx, addr) {
			return errAvoided
		}
		return nil
	},
}

// dial connects to a peer. If it has a name, addresses of it are passed over that led
// nowhere a moment ago; all of them only if another one is wanted.
func (db *DB) dial(ctx context.Context, p *peer, other bool, a *attempt) (net.Conn, error) {
	if !hasName(p.addr) {
		return db.opts.Dial(ctx, "tcp", p.addr)
	}
	d := &detour{avoid: db.peers.avoids(p, time.Now())}
	conn, err := db.opts.Dial(context.WithValue(ctx, detourKey{}, d), "tcp", p.addr)
	if err != nil && !other && d.skipped.Load() > 0 && d.tried.Load() == 0 {
		d = &detour{}
		conn, err = db.opts.Dial(context.WithValue(ctx, detourKey{}, d), "tcp", p.addr)
	}
	a.tried = d.tried.Load() > 0
	if errors.Is(err, errAvoided) {
		err = errNoLeft // and not what was wrong with the first of them
	}
	a.heeds = a.tried || d.skipped.Load() > 0
	return conn, err
}

// hasName reports whether an address may stand for several.
func hasName(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	_, err := netip.ParseAddr(host)
	return err != nil
}

// avoids are the addresses of a peer to pass over now.
func (ps *peers) avoids(p *peer, now time.Time) avoided {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	maps.DeleteFunc(p.avoid, func(_ string, until time.Time) bool { return !now.Before(until) })
	return maps.Clone(p.avoid)
}

// elsewhere reports whether an attempt that failed before anybody had introduced himself is
// to be made at another address of the same name, and notes which one to pass over.
func (ps *peers) elsewhere(p *peer, a attempt) bool {
	if a.err == nil || a.at == "" || !a.heeds || a.result.Peer != (causal.Origin{}) {
		return false
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.avoid == nil {
		p.avoid = avoided{}
	}
	p.avoid[a.at] = time.Now().Add(ps.most / 2)
	return true
}
