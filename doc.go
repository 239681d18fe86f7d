// Package replicator makes goleveldb databases masters of each other: every replica takes writes,
// offline too, and all of them converge.
//
//	raw, err := leveldb.OpenFile("data", replicator.StoreOptions())
//	…
//	db, err := replicator.Replicate(raw, &replicator.Options{
//		Listen: ":9000",
//		Peers:  []string{"other.example:9000"},
//		Secret: secret, // from GenerateSecret, the same on all replicas
//	})
//	…
//	defer db.Close()
//
// [DB] has the methods of *leveldb.DB: change the type of the variable, and existing code goes on
// working. Keys and values stay where they were, so any goleveldb program can read them after
// Close. The records of replication are stored under keys that start with ff ff.
//
// # What it promises
//
//   - Replicas that have received the same writes hold the same versions, whatever the resolver,
//     the order of arrival, or crashes in between.
//   - A write is dropped only when a causally later write of the same key replaces it. Concurrent
//     writes to a key are all kept; the [Resolver] picks the one that reads return, and
//     [DB.Conflicts] lists them.
//   - A write on a condition replaces exactly what its caller saw, or fails: see below.
//   - A batch is atomic here, and on other replicas up to the size that [DB.Write] names.
//   - Power failures, restored backups and cloned disks never make replicas disagree.
//
// It is not a consensus system. Two replicas can both sell the last seat on a plane. There are no
// unique constraints and no reads guaranteed to be the latest. If you need any of these, use a
// database with a single leader.
//
// # Read, think, write
//
// A Put replaces all that this replica holds of the key when it commits, also a write of another
// caller or another replica that came in since its own caller read the key. Nobody has looked at
// that write, and it is gone. To prevent it, [DB.Read] returns a value together with the names of
// the versions that it stands for, and [DB.PutIf], [DB.DeleteIf] and [DB.WriteIf] write only if
// this replica still holds exactly these; otherwise they write nothing and return [ErrChanged].
// [DB.Update] reads, calls a function and writes until it succeeds, and
// [DB.OpenCheckedTransaction] makes a condition of everything that a transaction reads.
//
// So no write of a caller at this replica is lost, nor one that was pulled in. Two replicas that
// have not heard of each other can both succeed on the same condition; then the key is in
// conflict, and both values are kept. Where that must not happen, let one replica take all writes
// of the key: of several callers there, exactly one wins. Where it may, the resolver makes one value
// of the two: a counter is a map from replicas to counts, of which it takes the greatest each; a
// set is merged. The examples of Update, PutIf and WriteIf show both.
//
// # Reading your own writes elsewhere
//
// A client that writes to one replica and reads from another may not see its own write. Return
// [DB.WriteToken] with the response, and have the other replica call [DB.WaitFor] before it reads.
// [DB.Token] is causal: after waiting for it a reader sees everything that the first replica had
// seen. It grows each time a database is opened, and may outgrow a cookie.
//
// # Knowing that a write is safe
//
// Put returns when the write is in this database; with Sync, when it is on this disk.
// [DB.WaitReplicated] returns once n other replicas have it on theirs: with n = 2 a write survives
// the loss of any two of the three disks. That takes a round trip and, at peers that write without
// Sync, up to two syncs, or a flush of their memtable if much of it is not on disk yet. So call it
// where a person waits for the answer, not for every line of a log. If it ends early the write is
// not undone: it is stored here, and will spread.
//
// # Reacting to changes
//
// [DB.Changes] yields what has changed since a cursor, and then what is committed, here or at peers.
// The cursor is good at every replica, so an index, a cache or an outbox can be kept by it through
// restarts and failures: see examples/index and examples/webhook. It costs a log read when it catches
// up, and a few microseconds per change and consumer after that.
//
// [DB.Watch] yields changes from now on, each of them, in the order in which they were committed here,
// and has no cursor: it is for what lives no longer than the process, a page that shows what happens,
// or a test. A reader that falls too far behind learns that it missed changes. Neither slows writers
// down.
//
// To know how far replicas are, rather than what they write, poll [DB.Status] or use Options.Events.
//
// # Choosing keys
//
// A key is the unit of conflict. Keep what changes together under one key, and what changes
// independently under several. For a list that all replicas append to, give each entry its own key
// with something unique in it (the replica's name, a random number); then nothing conflicts. For a
// counter, give each replica its own key, raise it with [DB.Update], and sum them when reading. If values
// have to be merged, set a [Resolver], the same one on every replica.
//
// # Data that stays on one replica
//
// Options.LocalRanges names key ranges that stay on this replica: they are neither logged nor sent,
// and are refused from peers. All replicas need the same ranges.
//
// Options.Follower makes a replica that takes the writes of others and refuses its own with
// [ErrFollower]. It still serves what it holds, so changes spread through it. [DB.SetReadOnly]
// stops both: the replica serves, and takes nothing.
//
// A replica cannot send without receiving, hold a part of the keys, or have fewer rights than
// others: any replica may serve any other, so each must hold everything, and anyone with the secret
// may write. Where some must not see everything, use several databases.
//
// # Snapshots and transactions
//
// [DB.GetSnapshot] and [DB.OpenTransaction] return types of this package with goleveldb's method
// sets, since goleveldb's own would show the log. Unlike goleveldb's, a transaction blocks neither
// writers nor replication, so what it has read may have changed when it is committed. One of
// [DB.OpenCheckedTransaction] fails then.
//
// # Writing to the handle directly
//
// Writes to the *leveldb.DB itself, before Replicate or afterwards, are not in the log. Replicate
// logs what it finds the first time; call [DB.Adopt] to do so again.
//
// # Operating it
//
// [DB.Status] reports which peers are reached, with which a session is live, how far each lags, how
// long writes take to arrive, and whether the store still takes writes; it marshals to JSON. Raise an
// alarm when a peer's lag grows, when Failed is set, and when Mismatches rises, which counts
// differences that had to be repaired. Events report the same as it happens. Package statuspage
// shows the status as a web page, and the module metrics/prometheus exports it.
//
// [DB.Verify] reads everything and names what is corrupted, [DB.Repair] restores it from what is
// here and from peers, and [DB.Compare] lists the differences from one peer. A replica may be
// stopped at any time; call Sync before a planned stop, and no write is left on it alone.
package replicator
