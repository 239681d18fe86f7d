package replicator

import "time"

const (
	maxRefusals  = 32
	refusalPause = 10 * time.Minute
)
