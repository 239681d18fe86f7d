// Package replicator makes goleveldb databases masters of each other: each takes
// writes, offline too, and all come to hold the same.
//
//	raw, err := leveldb.OpenFile("data", nil)
//	…
//	db, err := replicator.Replicate(raw, &replicator.Options{
//		Listen: ":9000",
//		Peers:  []string{"other.example:9000"},
//		Secret: secret, // of GenerateSecret, the same on all servers
//	})
//	…
//	defer db.Close()
//
// [DB] has the methods of *leveldb.DB: change the type of the variable, and what
// worked goes on working. Keys and values stay where they were, so that any
// goleveldb program can read them after Close; what replication needs lies beside
// them, under keys that start with ff ff.
//
// # What it promises
//
//   - Servers that have heard of the same writes hold the same, whatever the
//     resolver, the order of arrival, or crashes in between.
//   - A write disappears only when somebody who had seen it writes the key again.
//     Writes of one key that did not know of each other are all kept; the
//     [Resolver] chooses which one the key shows, and [DB.Conflicts] lists them.
//   - A batch is whole here, always, and on other servers if it is within the bound
//     that [DB.Write] names.
//   - Power failures, restored backups and cloned disks make no two servers disagree.
//
// It is not a consensus system. Two servers can both take the last seat on the
// plane; there are no unique constraints, no counters that add up, and no reads that
// are sure to be the latest. What needs these needs a database with one leader.
//
// # Reading your own writes elsewhere
//
// A client that writes at one replica and reads at another may come too early. Give
// it the [DB.WriteToken] with the answer, and let the other replica [DB.WaitFor] it.
// [DB.Token] is causal: who has waited for it sees all that the first replica had
// seen, too. It grows with each opening of a database, beyond what a cookie takes.
//
// # Knowing that a write is safe
//
// Put returns when the write is in this database; with Sync, when it is on this disk.
// [DB.WaitReplicated] returns when so many other servers have it on theirs. With two
// of them a write outlives any two disks of the three. It costs a round trip and, at
// peers that write without Sync, up to two syncs, or a flush of their store if much is
// not on disk yet; so call it where a person waits for the answer, not for every line of
// a log. If it ends early the write
// is not undone: it is here, and will spread.
//
// # Reacting to changes
//
// [DB.Watch] gives local and remote changes in the order in which they were committed
// here. A reader that is too slow is told so and reads anew; nobody waits for it.
//
// # Choosing keys
//
// A key is the unit of conflict, so keep what changes together under one key and what
// changes apart under several. A list that all servers add to is best kept as one key
// for each entry, with something unique in it (the server's name, a random number);
// nothing conflicts then. A counter is best kept as one key for each server, summed by
// the reader. A value that must be merged needs a [Resolver], which every server
// should have, the same one.
//
// # Data that is not for others
//
// Options.Local names key ranges that stay on this server: they are neither logged nor
// sent, and refused from peers. Give all servers the same ranges.
//
// Options.Follower makes a server that takes what others write and refuses writes of
// its own with [ErrFollower]; it still serves what it has, so news spreads through it.
// [DB.SetReadOnly] stops both: the server serves, and takes nothing. There is no server that only sends and never
// takes, no replication of a part of the keys, and no right to write that differs
// between members: every server may serve any other, so each must hold everything, and
// whoever has the secret may write. Use several databases where some must not see all.
//
// # Snapshots and transactions
//
// [DB.GetSnapshot] and [DB.OpenTransaction] return types of this package with
// goleveldb's method sets, since goleveldb's own would show the log. A transaction
// stalls neither writers nor replication, which goleveldb's does; see [Transaction] for
// what that means to a program that reads in it and then writes.
//
// # Writing past it
//
// What is written to the *leveldb.DB directly, before Replicate or behind its back, is
// not in the log. Replicate logs what it finds the first time; [DB.Adopt] does so
// again on demand.
//
// # Operating it
//
// [DB.Status] says who is reached, who lags and by how much, and whether the store
// still takes writes; it marshals to JSON. Alarm on a peer whose Behind grows, on
// Failed, and on Mismatches, which count what had to be repaired. Events tell the same
// as it happens. Package statuspage makes a page of it, and the module in
// metrics/prometheus figures for Prometheus.
//
// [DB.Verify] reads everything and names what does not fit together, [DB.Repair] mends
// it with what is here and what peers have, and [DB.Compare] names what differs from
// one peer. A server may be stopped at any time; Sync before a planned stop leaves
// nothing behind that only it has.
package replicator
