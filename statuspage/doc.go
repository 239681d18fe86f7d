// Package statuspage shows what a replicated database knows of itself and of its
// peers: one page that a service serves beside what else it serves.
//
//	mux.Handle("/replication/", operator(http.StripPrefix("/replication", statuspage.Handler(db))))
//
// The page says who holds the same as this server and who lags, by digest; how much
// changes; what is under way; and which keys are in conflict, with their versions. It
// comes from the server ready to read, so it needs no script; with one it keeps itself
// up to date. It loads nothing from anywhere, and its links are relative, so
// it may stand under any prefix.
//
// # Who may see it
//
// It shows keys and values that are in conflict, names, and addresses. There is no
// login of its own: put it behind the service's own authentication, as operator stands
// for above, or on a listener for operators. It only reads.
//
// # As JSON
//
// The same address gives a [Page] as JSON to who asks with "Accept: application/json" or
// with ?format=json.
package statuspage
