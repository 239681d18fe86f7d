package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsCluster is embedded NATS servers with a JetStream key-value bucket in files,
// of which each server has a copy. Writers are connected, in process, to the server
// that leads the bucket's stream.
type natsCluster struct {
	e       *env
	ports   []int
	servers []*server.Server
	conns   []*nats.Conn
	buckets []jetstream.KeyValue // by server
	leader  int
	keys    uint64
	seen    func(node int, key []byte)
	wg      sync.WaitGroup

	streams  []jetstream.JetStream // by server
	refused  atomic.Pointer[error] // of a publication, the first
	watching context.Context
	unwatch  context.CancelFunc
}

const bucket = "bench"

func startNATS(e *env, nodes int, seen func(node int, key []byte)) (_ *natsCluster, err error) {
	c := &natsCluster{e: e, seen: seen, servers: make([]*server.Server, nodes)}
	c.watching, c.unwatch = context.WithCancel(e.ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	for range nodes {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		c.ports = append(c.ports, port)
	}
	for i := range nodes {
		if err := c.start(i); err != nil {
			return nil, err
		}
	}
	for i := range nodes {
		if err := c.connect(i); err != nil {
			return nil, err
		}
	}
	if err := c.create(); err != nil {
		return nil, err
	}
	for i := range nodes {
		if seen == nil {
			break
		}
		if err := c.watch(i); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// freePort returns a port that nobody listens on. It is below those that connections are given: a server that is
// started earlier dials the ports of the others, and could be given one of these.
func freePort() (port int, err error) {
	for range 100 {
		port = 10_000 + rand.IntN(20_000)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, err
}

func (c *natsCluster) dir(i int) string { return filepath.Join(c.e.dir, fmt.Sprint("nats", i)) }

// start starts a server that knows the routes to all others.
func (c *natsCluster) start(i int) error {
	o := &server.Options{
		ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: c.dir(i),
		Cluster: server.ClusterOpts{Name: "bench", Host: "127.0.0.1", Port: c.ports[i]}, NoLog: true, NoSigs: true,
	}
	for j, port := range c.ports {
		if j != i {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprint("127.0.0.1:", port)})
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	c.servers[i] = s
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return fmt.Errorf("NATS server %d is not ready", i)
	}
	return nil
}

func (c *natsCluster) connect(i int) error {
	nc, err := nats.Connect("", nats.InProcessServer(c.servers[i]))
	if err != nil {
		return err
	}
	c.conns = append(c.conns, nc)
	return nil
}

// create makes the bucket, once the servers have chosen a leader.
func (c *natsCluster) create() error {
	ctx, cancel := context.WithTimeout(c.e.ctx, 30*time.Second)
	defer cancel()
	for !slices.ContainsFunc(c.servers, (*server.Server).JetStreamIsLeader) && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond) // a request before that would be lost, which takes two seconds to notice
	}
	for {
		js, err := jetstream.New(c.conns[0])
		if err != nil {
			return err
		}
		once, stop := context.WithTimeout(ctx, 2*time.Second)
		_, err = js.CreateKeyValue(once, jetstream.KeyValueConfig{Bucket: bucket, Replicas: len(c.servers), Storage: jetstream.FileStorage})
		stop()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("create the bucket: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for i := range c.conns {
		js, err := jetstream.New(c.conns[i], jetstream.WithPublishAsyncMaxPending(4000), jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) {
			c.refused.CompareAndSwap(nil, &err)
		}))
		if err != nil {
			return err
		}
		c.streams = append(c.streams, js)
		kv, err := js.KeyValue(ctx, bucket)
		if err != nil {
			return err
		}
		c.buckets = append(c.buckets, kv)
		stream, err := js.Stream(ctx, "KV_"+bucket)
		if err != nil {
			return err
		}
		if info := stream.CachedInfo(); info.Cluster != nil {
			fmt.Sscanf(info.Cluster.Leader, "n%d", &c.leader)
		}
	}
	return nil
}

// watch has a watcher at a server. The bucket places a watcher's consumer at a random server,
// whose own copy it then reads, so one is made anew until it is at this server.
func (c *natsCluster) watch(i int) error {
	known := map[string]bool{}
	for range 200 {
		w, err := c.buckets[i].WatchAll(c.watching, jetstream.UpdatesOnly())
		if err != nil {
			return err
		}
		at, err := c.placed(i, known)
		if err != nil {
			return errors.Join(err, w.Stop())
		}
		if at == i {
			c.wg.Go(func() { c.follow(i, w) })
			return nil
		}
		if err := w.Stop(); err != nil {
			return err
		}
	}
	return fmt.Errorf("NATS has placed no watcher at server %d", i)
}

// placed returns the server of the one consumer that is not yet known, and knows it then.
func (c *natsCluster) placed(i int, known map[string]bool) (at int, err error) {
	ctx, cancel := context.WithTimeout(c.e.ctx, 10*time.Second)
	defer cancel()
	stream, err := c.streams[i].Stream(ctx, "KV_"+bucket)
	if err != nil {
		return 0, err
	}
	at = -1
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		if !known[info.Name] && info.Cluster != nil {
			fmt.Sscanf(info.Cluster.Leader, "n%d", &at)
		}
		known[info.Name] = true
	}
	return at, list.Err()
}

func (c *natsCluster) follow(i int, w jetstream.KeyWatcher) {
	var key [keySize]byte
	for entry := range w.Updates() {
		if entry == nil || len(entry.Key()) != 2*keySize {
			continue
		}
		if _, err := hex.Decode(key[:], []byte(entry.Key())); err == nil {
			c.seen(i, key[:])
		}
	}
}

func (c *natsCluster) put(key, value []byte) error {
	_, err := c.buckets[c.leader].Put(c.e.ctx, hex.EncodeToString(key), value)
	return err
}

// write publishes at a server, the leader for node 0, without waiting for the confirmation, unless
// 4,000 are outstanding.
func (c *natsCluster) write(node int, key, value []byte) error {
	if err := c.refused.Load(); err != nil {
		return *err
	}
	js := c.streams[(c.leader+node)%len(c.streams)]
	_, err := js.PublishAsync("$KV."+bucket+"."+hex.EncodeToString(key), slices.Clone(value), jetstream.WithStallWait(time.Minute))
	return err
}

func (c *natsCluster) sent() (n int64, known bool) { return sentOver(c.ports) }

func (c *natsCluster) load(ks keys) error {
	js, err := jetstream.New(c.conns[c.leader], jetstream.WithPublishAsyncMaxPending(4000))
	if err != nil {
		return err
	}
	v := newValues(100, 7)
	for i := range uint32(ks.len()) {
		if _, err := js.PublishAsync("$KV."+bucket+"."+hex.EncodeToString(ks.at(i)), append([]byte(nil), v.next()...)); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(2 * time.Minute):
		return errors.New("NATS has not confirmed all messages after 2 min")
	}
	c.keys = uint64(ks.len())
	return nil
}

// join has a server that does not lead come back with an empty directory.
func (c *natsCluster) join() error {
	i := (c.leader + 1) % len(c.servers)
	c.conns[i].Close()
	c.servers[i].Shutdown()
	c.servers[i].WaitForShutdown()
	if err := os.RemoveAll(c.dir(i)); err != nil {
		return err
	}
	if err := c.start(i); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); c.held(i) < c.keys; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("NATS: the server that came back has %d of %d messages after 2 min", c.held(i), c.keys)
		}
	}
	return nil
}

// held is how many messages of the bucket a server has.
func (c *natsCluster) held(i int) (n uint64) {
	info, err := c.servers[i].Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return 0
	}
	for _, a := range info.AccountDetails {
		for _, s := range a.Streams {
			n += s.State.Msgs
		}
	}
	return n
}

func (c *natsCluster) close() error {
	c.unwatch()
	for _, nc := range c.conns {
		nc.Close()
	}
	for _, s := range c.servers {
		if s != nil {
			s.Shutdown()
			s.WaitForShutdown()
		}
	}
	c.wg.Wait()
	return nil
}
