package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/level-replicator/replicator"
)

// pipes is a listener of connections in memory, in a bubble of virtual time.
type pipes struct {
	deaf
	dialed chan net.Conn
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.dialed:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// httpBubble is a replica whose HTTP clients are in virtual time.
type httpBubble struct {
	t       *testing.T
	l       *pipes
	conns   *conns
	memory  *memory
	replica *local

	clients []*client
}

// inBubble runs a test against a replica with that many places and bytes of memory.
func inBubble(t *testing.T, places int, bytes int64, f func(b *httpBubble)) {
	synctest.Test(t, func(t *testing.T) {
		raw, err := leveldb.Open(storage.NewMemStorage(), nil)
		require.NoError(t, err)
		silent := slog.New(slog.DiscardHandler)
		db, err := replicator.Replicate(raw, &replicator.Options{Listener: newDeaf(), Logger: silent})
		require.NoError(t, err)
		b := &httpBubble{t: t, l: &pipes{deaf: *newDeaf(), dialed: make(chan net.Conn)}, replica: &local{reader: db, db: db}}
		b.conns = newConns(b.l, places, silent)
		b.memory = newMemory(bytes, b.conns.oustSlow)
		o := &replicator.Options{Limits: replicator.Limits{MaxValue: 4 << 20, MaxKey: 64 << 10}}
		server := newServer(newHandler(b.replica, int64(o.Limits.MaxValue), b.memory), o, slog.NewTextHandler(io.Discard, nil))
		go server.Serve(b.conns)
		f(b)
		for _, c := range b.clients {
			c.Close()
			close(c.out)
		}
		require.NoError(t, server.Close())
		require.NoError(t, db.Close())
		time.Sleep(2 * time.Second) // goleveldb ends a little later than its Close
	})
}

// client is one connection of a client.
type client struct {
	net.Conn
	b   *httpBubble
	r   *bufio.Reader
	out chan string // what is being sent
}

// dial connects and sends.
func (b *httpBubble) dial(text string, args ...any) *client {
	mine, theirs := net.Pipe()
	b.l.dialed <- theirs
	c := &client{mine, b, bufio.NewReader(mine), make(chan string, 100)}
	b.clients = append(b.clients, c)
	go func() {
		for text := range c.out {
			io.WriteString(c, text) // until the server closes
		}
	}()
	c.send(fmt.Sprintf(text, args...))
	return c
}

// send sends without waiting until it is taken.
func (c *client) send(text string) {
	c.out <- text
	synctest.Wait()
}

func put(key string, size int, body string) string {
	return fmt.Sprintf("PUT /kv/%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", key, size, body)
}

// answer reads a whole answer. The connection was closed if it is 0.
func (c *client) answer() (status int, body string) {
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, err.Error()
	}
	text, err := io.ReadAll(resp.Body)
	require.NoError(c.b.t, err)
	return resp.StatusCode, string(text)
}

func (b *httpBubble) has(key string) bool {
	_, _, err := b.replica.get(b.t.Context(), []byte(key))
	return err == nil
}

func TestBodyThatDoesNotComeIsGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		head   string
		method string
	}{
		"never":   {put("k", 10, ""), "PUT"},
		"stalls":  {put("k", 10, "begin"), "PUT"},
		"chunked": {"PUT /kv/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n", "PUT"},
		"of GET":  {"GET /kv/k HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nbegin", "GET"},
		"of POST": {"POST /take/k HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nbegin", "POST"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 4, 8<<20, func(b *httpBubble) {
				began := time.Now()
				status, body := b.dial("%s", c.head).answer()
				require.Equal(t, http.StatusRequestTimeout, status, body)
				require.Equal(t, paceTime, time.Since(began))
				require.False(t, b.has("k"))
			})
		})
	}
}

func TestBodyMayComeAsSlowlyAsAPeerMaySend(t *testing.T) {
	const size = 10 * paceBytes
	inBubble(t, 4, 8<<20, func(b *httpBubble) {
		c := b.dial("%s", put("k", size, ""))
		for range 10 {
			time.Sleep(paceTime * 9 / 10)
			c.send(strings.Repeat("v", paceBytes))
		}
		status, body := c.answer()
		require.Equal(t, http.StatusNoContent, status, body)

		c = b.dial("%s", put("slow", size, ""))
		for range 9 {
			c.send("v")
			time.Sleep(time.Second)
		}
		status, _ = c.answer()
		require.Equal(t, http.StatusRequestTimeout, status)
		require.False(t, b.has("slow"))
	})
}

func TestBodyWithoutEndIsRefused(t *testing.T) {
	inBubble(t, 4, 8<<20, func(b *httpBubble) {
		for _, head := range []string{"GET /kv/k", "DELETE /kv/k", "POST /repair", "PUT /kv/k"} {
			c := b.dial("%s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", head)
			go func() {
				for err := error(nil); err == nil; {
					_, err = io.WriteString(c, "400\r\n"+strings.Repeat("v", 1024)+"\r\n")
				}
			}()
			status, _ := c.answer()
			require.Equal(t, http.StatusRequestEntityTooLarge, status, head)
			c.Close()
		}
		require.False(t, b.has("k"))
	})
}

func TestCutBodyIsAnErrorAndWritesNothing(t *testing.T) {
	base := serve(t, t.TempDir()+"/a").http
	for _, head := range []string{
		"Content-Length: 10\r\n\r\nbegin", "Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n",
		"Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n0\r\n", "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
	} {
		conn, err := net.Dial("tcp", base)
		require.NoError(t, err)
		fmt.Fprintf(conn, "PUT /kv/k HTTP/1.1\r\nHost: localhost\r\n%s", head)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusBadRequest, resp.StatusCode)
		require.Contains(t, bodyOf(t, resp), "the body is not whole, nothing was done")
		conn.Close()
	}
	require.Equal(t, http.StatusNotFound, ask(t, "GET", "http://"+base+"/kv/k", "").StatusCode)
}

func TestAnswerThatNobodyTakesIsGivenUp(t *testing.T) {
	inBubble(t, 4, 1<<20, func(b *httpBubble) {
		require.NoError(t, b.replica.put(t.Context(), []byte("k"), bytes.Repeat([]byte("v"), 1<<20), condition{}, 0))
		c := b.dial("GET /kv/k HTTP/1.1\r\nHost: h\r\n\r\n")
		_, err := c.r.ReadByte()
		require.NoError(t, err)
		require.False(t, b.memory.sem.TryAcquire(1), "the value counts")
		time.Sleep(paceTime + time.Second)
		synctest.Wait()
		require.True(t, b.memory.sem.TryAcquire(1<<20))
		_, err = io.ReadAll(c.r)
		require.NoError(t, err, "what was on its way, and then the end")
	})
}

func TestNewClientGetsThePlaceOfOneThatCanDoWithoutIt(t *testing.T) {
	inBubble(t, 2, 8<<20, func(b *httpBubble) {
		kept := b.dial("%s", put("kept", 1, "v"))
		status, _ := kept.answer()
		require.Equal(t, http.StatusNoContent, status)
		slow := b.dial("%s", put("slow", 10, "begin"))

		status, _ = b.dial("%s", put("k1", 1, "v")).answer()
		require.Equal(t, http.StatusNoContent, status, "it has the place of a connection kept for later")
		_, err := kept.r.ReadByte()
		require.ErrorIs(t, err, io.EOF)

		time.Sleep(clientPatience / 2)
		fresh := b.dial("%s", put("fresh", 10, "begin")) // in the place of k1's
		status, body := b.dial("%s", put("k2", 1, "v")).answer()
		require.Equal(t, http.StatusServiceUnavailable, status, "none has had its second")
		require.Contains(t, body, "too many connections")

		time.Sleep(2 * clientPatience)
		status, _ = b.dial("%s", put("k3", 1, "v")).answer()
		require.Equal(t, http.StatusNoContent, status)
		status, body = slow.answer()
		require.Equal(t, http.StatusRequestTimeout, status)
		require.Contains(t, body, "while others wait")
		require.False(t, b.has("slow"))
		fresh.send("rest.")
		status, _ = fresh.answer()
		require.Equal(t, http.StatusNoContent, status)
		require.LessOrEqual(t, len(b.conns.places), 2)
	})
}

func TestManySlowClientsKeepNobodyOut(t *testing.T) {
	inBubble(t, 8, 8<<20, func(b *httpBubble) {
		for i := range 100 {
			c := b.dial("%s", put(fmt.Sprint("slow", i), 1<<20, ""))
			go func() {
				for range 29 {
					time.Sleep(time.Second)
					c.out <- "v"
				}
			}()
		}
		served := 0
		for i := range 60 {
			time.Sleep(500 * time.Millisecond)
			c := b.dial("%s", put(fmt.Sprint("k", i), 1, "v"))
			if status, _ := c.answer(); status == http.StatusNoContent {
				served++
			}
			c.Close()
		}
		require.GreaterOrEqual(t, served, 58)
	})
}

func TestValuesOnTheirWayAreBounded(t *testing.T) {
	const size = 1 << 20
	inBubble(t, 8, size, func(b *httpBubble) {
		slow := b.dial("%s", put("slow", size, strings.Repeat("v", freeBytes+1)))
		require.False(t, b.memory.sem.TryAcquire(1), "its memory is counted before it is there")
		status, _ := b.dial("%s", put("small", 1, "v")).answer()
		require.Equal(t, http.StatusNoContent, status, "a small value needs none")

		next := b.dial("%s", put("next", size, strings.Repeat("v", freeBytes+1)))
		time.Sleep(2 * clientPatience)
		next.send(strings.Repeat("v", size-freeBytes-1))
		status, _ = next.answer()
		require.Equal(t, http.StatusNoContent, status, "who is slow goes")
		status, _ = slow.answer()
		require.Equal(t, http.StatusRequestTimeout, status)
		synctest.Wait()
		require.True(t, b.memory.sem.TryAcquire(size), "all is given back")
		b.memory.sem.Release(size)

		status, body := b.dial("GET /kv/next HTTP/1.1\r\nHost: h\r\n\r\n").answer()
		require.Equal(t, http.StatusOK, status)
		require.Len(t, body, size)
		status, body = b.dial("GET /kv?values=1 HTTP/1.1\r\nHost: h\r\n\r\n").answer()
		require.Equal(t, http.StatusOK, status, "a page counts more than there is: it has all")
		require.Contains(t, body, "next")
		synctest.Wait()
		require.True(t, b.memory.sem.TryAcquire(size))

		status, body = b.dial("GET /kv/next HTTP/1.1\r\nHost: h\r\n\r\n").answer()
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Contains(t, body, "too many bytes")
		status, _ = b.dial("%s", put("next", size, strings.Repeat("v", size))).answer()
		require.Equal(t, http.StatusServiceUnavailable, status)
	})
}

func TestChunkedBodiesOfAnyLengthArrive(t *testing.T) {
	inBubble(t, 8, 8<<20, func(b *httpBubble) {
		for _, size := range []int{0, 1, freeBytes - 1, freeBytes, freeBytes + 1, looseBytes, looseBytes + 1, 4 << 20} {
			body := strings.Repeat("v", size)
			chunk := ""
			if size > 0 {
				chunk = fmt.Sprintf("%x\r\n%s\r\n", size, body)
			}
			status, said := b.dial("PUT /kv/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n", chunk).answer()
			require.Equal(t, http.StatusNoContent, status, said)
			got, _, err := b.replica.get(t.Context(), []byte("k"))
			require.NoError(t, err)
			require.Equal(t, body, string(got), size)
			status, said = b.dial("%s", put("k", size, body)).answer()
			require.Equal(t, http.StatusNoContent, status, said)
		}
		size := 4<<20 + 1
		status, _ := b.dial("PUT /kv/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", size, strings.Repeat("v", size)).answer()
		require.Equal(t, http.StatusRequestEntityTooLarge, status)
		status, _ = b.dial("%s", put("k", size, "")).answer()
		require.Equal(t, http.StatusRequestEntityTooLarge, status, "without waiting for it")
		synctest.Wait()
		require.True(t, b.memory.sem.TryAcquire(8<<20), "all is given back")
	})
}
