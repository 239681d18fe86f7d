package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
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
}

const bucket = "bench"

func startNATS(e *env, nodes int, seen func(node int, key []byte)) (_ cluster, err error) {
	c := &natsCluster{e: e, seen: seen, servers: make([]*server.Server, nodes)}
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
	return c, c.create()
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
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
		js, err := jetstream.New(c.conns[i], jetstream.WithPublishAsyncMaxPending(4000))
		if err != nil {
			return err
		}
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

func (c *natsCluster) put(key, value []byte) error {
	name := hex.EncodeToString(key)
	if c.seen != nil {
		for i := range c.buckets {
			c.wg.Go(func() { c.poll(i, name, key) })
		}
	}
	_, err := c.buckets[c.leader].Put(c.e.ctx, name, value)
	return err
}

// poll reads a key at a server until it is there. A bucket allows direct reads, which
// the server that is asked answers itself if it can.
func (c *natsCluster) poll(i int, name string, key []byte) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && c.e.ctx.Err() == nil; time.Sleep(100 * time.Microsecond) {
		if _, err := c.buckets[i].Get(c.e.ctx, name); err == nil {
			c.seen(i, key)
			return
		}
	}
}

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
	c.wg.Wait()
	for _, nc := range c.conns {
		nc.Close()
	}
	for _, s := range c.servers {
		if s != nil {
			s.Shutdown()
			s.WaitForShutdown()
		}
	}
	return nil
}
