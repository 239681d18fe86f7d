// Package replicatortest runs a cluster of replicas inside one test:
// a network in memory that can be slow, split, and cut at any byte, and stores
// in memory. [TestResolver] and [TestDiscoverer] test what a program plugs in against its contract.
//
// # A cluster
//
// Every replica gets a host, a listener and a dialer of the same [Network]:
//
//	net := replicatortest.NewNetwork(1)
//	for _, name := range []string{"a", "b", "c"} {
//		host := net.Host(name)
//		listener, err := host.Listen("9000")
//		require.NoError(t, err)
//		db, err := replicator.Replicate(replicatortest.MemDB(t), &replicator.Options{
//			Listener: listener,
//			Dial:     host.Dial,
//			Peers:    []string{"a:9000"},
//			Insecure: true, // or a Secret: "a:9000" is no loopback address
//		})
//		require.NoError(t, err)
//		t.Cleanup(func() { db.Close() })
//	}
//	net.Partition([]string{"a", "b"}, []string{"c"})
//	// … write on both sides …
//	net.Heal()
//	// … and see them agree.
//
// # Virtual time
//
// All of it works in a [testing/synctest] bubble, where an hour of replication
// passes in a second or so: a goroutine that waits for the network is durably
// blocked, timers exist only while somebody waits, and no goroutine outlives the
// connection it serves. [Bubble] is synctest.Test with two precautions that
// goleveldb makes necessary:
//
//   - leveldb.DB.Close leaves a goroutine (mpoolDrain) for up to a second. A bubble
//     that ends before is reported as a deadlock, so two virtual seconds must pass
//     after the last Close. The cleanup of [MemDB] waits for them too, so it also
//     suits a plain synctest.Test.
//   - An open database wakes up every 30 virtual seconds. A bubble whose test hangs
//     thus is no deadlock to synctest: it spins for ever. A watchdog in real time
//     ends it and prints where every goroutine stands.
//
// A bubble also asks this of the test: open and close databases inside it, use a
// Network and its connections in one bubble only, and never wait (sleep, read,
// write) while holding a mutex that another goroutine may want. A goroutine
// blocked on a mutex is not durably blocked and stops the clock for all.
//
// # Chance
//
// Latencies and cuts are drawn from the seed, the names of the two hosts, and
// how many connections the first has opened to the second before. So one seed
// treats the nth connection of a pair the same in every run. The order in which
// goroutines run is still the scheduler's, so a seed narrows a failure down but
// does not promise to replay it.
package replicatortest
