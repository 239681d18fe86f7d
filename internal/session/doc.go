// Package session is one anti-entropy session between two replicas, as a pure state machine:
// frames go in through [Session.Receive], frames come out of [Session.Frames], and pages, of which
// there may be many, are made one at a time by [Session.Produce]. A session knows no socket, clock or
// goroutine, and one goroutine uses it at a time. Whatever it needs of the replica it gets from its [Host].
//
// Both replicas say hello. If their version vectors and digests are equal, that was all. Otherwise each
// reports what changed of its vectors since the other last heard of them, and pulls what it lacks: first the
// dialer, then the acceptor.
//
//	dialer                                acceptor
//	hello                          →
//	                               ←      hello; vectors and addresses, if they are news
//	vectors, addresses, pull       →
//	                               ←      vectors, (chunk …) page …, end
//	(want                          →      values of which only the dots were sent
//	                               ←      vectors, (chunk …) page, end) …
//	(probe                         →      a repair: where do the logs differ?
//	                               ←      vectors, probe reply) …
//	(fetch                         →      and what is there?
//	                               ←      vectors, (chunk …) page …, end) …
//	turn                           →
//	                               ←      pull: the same with the sides exchanged
//	                               ←      bye, or stay
//
// After stay the connection is kept, and both push what is new: see [Stream].
//
// A side that lacks nothing says turn, or its last word, at once. refuse may come at any time, from either
// side, as the last word; keepalive once both have said hello, from a side that is at work.
package session
