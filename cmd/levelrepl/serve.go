package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
)

// A replica has stopLimit to stop, so that it is done before Docker kills it after 10 s.
// Requests under way get the first third, peers that lack something the second, and the
// store the last.
const (
	stopLimit   = 9 * time.Second
	requestTime = stopLimit / 3
	goodbyeTime = 2 * stopLimit / 3
)

func newServe(a *app) *cobra.Command {
	s := &serving{app: a}
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "Run a replica on a goleveldb directory",
		Long: `Run a replica on a goleveldb directory: it replicates with its peers, and answers
HTTP. DIR may hold any goleveldb database (what it holds is logged first), and is made
if it does not exist.

Beyond loopback, peers need --secret-file (made by "levelrepl secret FILE") or the
three --tls flags. HTTP has no authentication: whoever reaches it can read and write
everything, so it stays on loopback unless --http-insecure says otherwise.

It stops cleanly on SIGINT and SIGTERM, within 9 s whatever happens; a second one ends
it at once. It reads secrets and certificates again when their files change, and on
SIGHUP.`,
		Example: `  levelrepl serve data
  levelrepl serve data --listen :9000 --peer other.example:9000 --secret-file secret
  levelrepl serve data2 --listen 127.0.0.1:9001 --peer 127.0.0.1:9000 --http 127.0.0.1:9081`,
		Args: args(1, 1, "one directory"),
		RunE: func(c *cobra.Command, args []string) error {
			a.out = a.stdout.w // a replica goes on if a line of its output is lost
			return s.run(c.Context(), args[0])
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	s.flags(c)
	return c
}

// run serves until ctx ends, and for stopLimit more at most.
func (s *serving) run(ctx context.Context, dir string) error {
	// The reader of the log may go away, or be restarted.
	signal.Ignore(syscall.SIGPIPE)
	var stop stopping
	defer context.AfterFunc(ctx, stop.begin)()
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, &stop, dir) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(stopLimit):
		return fmt.Errorf("the replica did not stop within %v: what is not on disk comes back from its peers when it is started again", stopLimit)
	}
}

// stopping is the time at which the replica began to stop.
type stopping struct{ since atomic.Int64 }

func (s *stopping) begin() { s.since.CompareAndSwap(0, time.Now().UnixNano()) }

// within returns a context that ends d after that.
func (s *stopping) within(d time.Duration) (context.Context, context.CancelFunc) {
	s.begin()
	return context.WithDeadline(context.Background(), time.Unix(0, s.since.Load()).Add(d))
}

func (s *serving) serve(ctx context.Context, stop *stopping, dir string) error {
	o, err := s.options()
	if err != nil {
		return err
	}
	defer s.hangups(ctx, o)()
	tables, err := s.fit(o, handleLimit())
	if err != nil {
		return err
	}
	l, err := s.listenHTTP()
	if err != nil {
		return err
	}
	if l != nil {
		defer l.Close()
	}
	if err := makeDirectory(dir); err != nil {
		return err
	}
	raw, err := opened(func() (*leveldb.DB, error) {
		return leveldb.OpenFile(dir, s.storeOptions(tables))
	})
	if err != nil {
		return explainOpen(dir, err)
	}
	db, err := replicator.Replicate(raw, o)
	if err != nil {
		return errors.Join(s.explain(err), raw.Close())
	}
	fmt.Fprintf(s.out, "replicating %s on %s\n", dir, db.Addr())
	err = s.serveHTTP(ctx, stop, l, &local{reader: db, db: db, sync: s.sync}, o)
	if err == nil {
		s.sayGoodbye(stop, db)
	}
	if err = errors.Join(err, db.Close()); err == nil {
		fmt.Fprintln(s.out, "stopped")
	}
	return err
}

// sayGoodbye has peers pull what only this replica has, if they can be reached.
func (s *serving) sayGoodbye(stop *stopping, db *replicator.DB) {
	ctx, cancel := stop.within(goodbyeTime)
	defer cancel()
	if err := db.Sync(ctx); err != nil {
		slog.New(s.handler).Warn("some peers cannot be reached before the stop; what they lack comes when this replica is back", "error", err)
	}
}

func (s *serving) listenHTTP() (net.Listener, error) {
	if s.http == "" || s.http == "off" {
		return nil, nil
	}
	l, err := net.Listen("tcp", s.http)
	if err != nil {
		return nil, &hintedError{fmt.Errorf("cannot answer HTTP: %w", err), "--http takes another address, --http off does without"}
	}
	if !isLoopback(l.Addr()) && !s.httpInsecure {
		l.Close()
		return nil, &usageError{fmt.Errorf("--http %s is reachable from elsewhere, and HTTP has no authentication", s.http), "use a loopback address, or add --http-insecure if the network is yours alone"}
	}
	return l, nil
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// serveHTTP serves until ctx ends; without a listener it only waits for that.
func (s *serving) serveHTTP(ctx context.Context, stop *stopping, l net.Listener, n *local, o *replicator.Options) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	cs := newConns(l, s.httpConns, o.Logger)
	h := newHandler(n, int64(o.Limits.MaxValue), newMemory(int64(s.httpInFlight), cs.oustSlow))
	if isLoopback(l.Addr()) {
		h = onlyLoopback(h)
	}
	server := newServer(until(ctx, h), o, s.handler)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(cs) }()
	fmt.Fprintf(s.out, "answering http://%s\n", l.Addr())
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	patience, cancel := stop.within(requestTime)
	defer cancel()
	if err := server.Shutdown(patience); err != nil {
		_ = server.Close() // requests that would not end are cut
	}
	return nil
}

// newServer returns an HTTP server for the connections of conns.
func newServer(h http.Handler, o *replicator.Options, log slog.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: paceTime, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 3*o.Limits.MaxKey + 64<<10, // a key is percent-encoded
		ConnContext:    withPlace, ConnState: turn,
		ErrorLog: slog.NewLogLogger(log, slog.LevelWarn),
	}
}

// explain adds to an error of Replicate what to do, in terms of flags.
func (s *serving) explain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" {
		return &hintedError{err, "--listen takes another address; 127.0.0.1:0 picks a free port"}
	}
	return err
}
