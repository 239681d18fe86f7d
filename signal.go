package replicator

// signal tells one goroutine that there is something to do. However often it is set before it is
// received, it is received once.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

// Set sets the signal, unless it is set already.
func (s signal) Set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// C returns the channel to receive from.
func (s signal) C() <-chan struct{} { return s }

// Take clears the signal and reports whether it was set.
func (s signal) Take() bool {
	select {
	case <-s:
		return true
	default:
		return false
	}
}

// isClosed reports whether a channel on which nothing is sent has been closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
