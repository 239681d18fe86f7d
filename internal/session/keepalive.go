package session

import "time"

const (
	// KeepaliveInterval is well below progressTime, after which a silent peer is cut.
	KeepaliveInterval = 3 * time.Second
	// MaxKeepalives bounds how often in a row a peer may say that it is still at work: for
	// three hours. Reading a log of a thousand million entries does not take so long.
	MaxKeepalives = 3600
)
