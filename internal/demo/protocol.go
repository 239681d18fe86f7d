package demo

// roleEnv, if set, makes this program a replica; it holds a config as JSON.
const roleEnv = "REPLICATOR_EXAMPLE_CLUSTER_REPLICA"

type config struct {
	Name      string `json:"name"`
	Cluster   string `json:"cluster"`
	Dir       string `json:"dir"`
	Multicast bool   `json:"multicast"`
}

// request is a line on a replica's standard input. When that ends the replica
// closes its database and exits, so no replica outlives the program.
type request struct {
	ID     int      `json:"id"`
	Do     string   `json:"do"` // a name in replica.commands
	Source string   `json:"source,omitempty"`
	Keys   []string `json:"keys,omitempty"`
	Prefix string   `json:"prefix,omitempty"`
	Count  int      `json:"count,omitempty"`
	Peers  []string `json:"peers,omitempty"`
}

// reply is a line on a replica's standard output, followed by Size bytes. The
// last one for a request has Last or Error set; those with ID 0 answer no request.
type reply struct {
	ID    int     `json:"id"`
	Last  bool    `json:"last,omitempty"`
	Error string  `json:"error,omitempty"`
	Event string  `json:"event,omitempty"` // "open", "no multicast"
	Addr  string  `json:"addr,omitempty"`  // for peers, or of the page
	Key   string  `json:"key,omitempty"`
	Size  int     `json:"size,omitempty"`
	N     int     `json:"n,omitempty"`
	State *report `json:"state,omitempty"`

	value []byte
}

// report is the state of a replica. The first fields are those of replicator.Status that
// the parent needs.
type report struct {
	Name      string   `json:"name"`
	Met       []string `json:"met"` // names of the peers with a good session
	Keys      int64    `json:"keys"`
	Conflicts int64    `json:"conflicts"`
	Pulled    int64    `json:"pulled"`
	Served    int64    `json:"served"`
	Digest    string   `json:"digest"`

	Written      int64 `json:"written"`      // values put here
	WrittenBytes int64 `json:"writtenBytes"` //
	Arisen       int64 `json:"arisen"`       // keys that came into conflict
	Ended        int64 `json:"ended"`        // keys that came out of one
	Merged       int64 `json:"merged"`       // calls of the resolver
}
