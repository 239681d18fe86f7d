package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func TestOutboxPostsEachChangeThoughItIsCutOff(t *testing.T) {
	db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{Listen: "127.0.0.1:0", LocalRanges: []*util.Range{Local}})
	require.NoError(t, err)
	defer db.Close()
	got := make(chan Event)
	server := httptest.NewServer(Unreliable(got))
	defer server.Close()
	outbox := Outbox{DB: db, Prefix: "order/", URL: server.URL, Client: http.DefaultClient, Pause: time.Microsecond, MaxPause: time.Millisecond}
	for i := range 5 {
		require.NoError(t, db.Put(fmt.Appendf(nil, "order/%d", i), []byte("open"), &opt.WriteOptions{Sync: true}))
		require.NoError(t, db.Put([]byte("other"), nil, nil))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- outbox.Run(ctx) }()
		require.Equal(t, Event{Key: fmt.Sprintf("order/%d", i), Value: "open"}, <-got)
		stop()
		require.ErrorIs(t, <-ended, context.Canceled)
	}
}
