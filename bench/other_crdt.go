package main

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-datastore"
	crdtstore "github.com/ipfs/go-ds-crdt"
	dsleveldb "github.com/ipfs/go-ds-leveldb"
)

// crdtNode is go-ds-crdt over go-ds-leveldb without fsync. It is alone: its network
// would be libp2p, which has no place here.
type crdtNode struct {
	ctx   context.Context
	store *dsleveldb.Datastore
	crdt  *crdtstore.Datastore
}

func startCRDT(e *env) (cluster, error) {
	store, err := dsleveldb.NewDatastore(e.dir, &dsleveldb.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	blocks := blockstore.NewBlockstore(store)
	dag := merkledag.NewDAGService(blockservice.New(blocks, offline.Exchange(blocks)))
	c, err := crdtstore.New(store, datastore.NewKey("crdt"), dag, nobody{}, crdtstore.DefaultOptions())
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &crdtNode{e.ctx, store, c}, nil
}

func (n *crdtNode) put(key, value []byte) error {
	return n.crdt.Put(n.ctx, datastore.NewKey(hex.EncodeToString(key)), value)
}

func (n *crdtNode) close() error { return errors.Join(n.crdt.Close(), n.store.Close()) }

// nobody is a network without peers, as crdtstore.Broadcaster.
type nobody struct{}

// Broadcast reaches nobody.
func (nobody) Broadcast(context.Context, []byte) error { return nil }

// Next waits for the end: nobody says anything.
func (nobody) Next(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
