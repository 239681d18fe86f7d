package demo

// roleEnv, if set, makes this program a server; it holds a serverConfig in JSON.
const roleEnv = "REPLICATOR_EXAMPLE_CLUSTER_SERVER"

type serverConfig struct {
	Name      string `json:"name"`
	Cluster   string `json:"cluster"`
	Dir       string `json:"dir"`
	Multicast bool   `json:"multicast"`
}

// request is a line on a server's standard input. When that ends the server
// closes its database and exits, so no server outlives the program.
type request struct {
	ID     int      `json:"id"`
	Do     string   `json:"do"` // a name in server.commands
	Source string   `json:"source,omitempty"`
	Keys   []string `json:"keys,omitempty"`
	Prefix string   `json:"prefix,omitempty"`
	Count  int      `json:"count,omitempty"`
	Peers  []string `json:"peers,omitempty"`
}

// reply is a line on a server's standard output, followed by Size bytes. The
// last one for a request has Last or Error set; ID 0 is news nobody asked for.
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

// report is how a server stands. The first fields are those of
// replicator.Status that the parent needs.
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
