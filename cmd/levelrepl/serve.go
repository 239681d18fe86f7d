package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/level-replicator/replicator"
)

// stopPatience is how long a stopping node tries to leave behind nothing that only
// it has.
const stopPatience = 5 * time.Second

func newServe(a *app) *cobra.Command {
	s := &serving{app: a}
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "Run a node on a goleveldb directory",
		Long: `Run a node on a goleveldb directory: it replicates with its peers, and answers
HTTP. DIR may hold any goleveldb database (what it holds is logged first), and is made
if it does not exist.

Beyond loopback, peers need --secret-file (made by "levelrepl secret FILE") or the
three --tls flags. HTTP has no authentication: whoever reaches it can read and write
everything, so it stays on loopback unless --http-insecure says otherwise.

It stops cleanly on SIGINT and SIGTERM.`,
		Example: `  levelrepl serve data
  levelrepl serve data --listen :9000 --peer other.example:9000 --secret-file secret
  levelrepl serve data2 --listen 127.0.0.1:9001 --peer 127.0.0.1:9000 --http 127.0.0.1:9081`,
		Args: args(1, 1, "one directory"),
		RunE: func(c *cobra.Command, args []string) error {
			a.out = a.stdout.w // that a line of a node's could not be printed is no failure of the node
			return s.run(c.Context(), args[0])
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	s.flags(c)
	return c
}

// run serves until ctx ends.
func (s *serving) run(ctx context.Context, dir string) error {
	o, err := s.options()
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
	raw, err := leveldb.OpenFile(dir, nil)
	if err != nil {
		return explainOpen(dir, err)
	}
	db, err := replicator.Replicate(raw, o)
	if err != nil {
		return errors.Join(s.explain(err), raw.Close())
	}
	fmt.Fprintf(s.out, "replicating %s on %s\n", dir, db.Addr())
	err = s.serveHTTP(ctx, l, &local{reader: db, db: db, sync: s.sync}, int64(o.MaxValue))
	if err == nil {
		s.sayGoodbye(db)
	}
	if err = errors.Join(err, db.Close()); err == nil {
		fmt.Fprintln(s.out, "stopped")
	}
	return err
}

// sayGoodbye has peers take what only this node has, if they can be reached.
func (s *serving) sayGoodbye(db *replicator.DB) {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := db.Sync(ctx); err != nil {
		slog.New(s.handler).Warn("not every peer could be reached before the stop; what it lacks comes when this node is back", "error", err)
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
		return nil, &usageError{fmt.Errorf("--http %s is reachable from elsewhere, and HTTP asks nobody who they are", s.http), "use a loopback address, or add --http-insecure if the network is yours alone"}
	}
	return l, nil
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// serveHTTP answers until ctx ends, or only waits for that if there is no listener.
func (s *serving) serveHTTP(ctx context.Context, l net.Listener, n *local, maxValue int64) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	h := newHandler(n, maxValue)
	if isLoopback(l.Addr()) {
		h = onlyLoopback(h)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(s.handler, slog.LevelWarn)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	fmt.Fprintf(s.out, "answering http://%s\n", l.Addr())
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := server.Shutdown(patience); err != nil {
		_ = server.Close() // requests that would not end are cut
	}
	return nil
}

// explain says what to do about a refusal of Replicate, in terms of flags.
func (s *serving) explain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" {
		return &hintedError{err, "--listen takes another address; 127.0.0.1:0 picks a free port"}
	}
	return err
}
