// Package statuspage shows what a replica knows of itself and of its peers, on one page
// that a service mounts beside its others.
//
//	mux.Handle("/replication/", operator(http.StripPrefix("/replication", statuspage.Handler(db))))
//
// The page shows which replicas hold the same as this one, by digest, and which lag; with which
// a session is live; how much changes, and how long it takes to arrive; what is under way; and
// which keys are in conflict, with their versions, and which have changed since somebody looks. It is rendered on the server and needs no
// script; with scripts it keeps itself up to date. It loads nothing from elsewhere, and its links
// are relative, so it works under any prefix.
//
// # Who may see it
//
// It shows keys and values that are in conflict, keys that have just changed, names, and addresses, and has no login of
// its own: put it behind the service's authentication, operator in the example above, or
// on a listener for operators. It only reads.
//
// # As JSON
//
// The same address returns a [Page] as JSON to requests with "Accept: application/json" or
// ?format=json.
package statuspage
