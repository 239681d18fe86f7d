package session

import "github.com/level-replicator/replicator/internal/store"

// outbox holds what is to be sent.
type outbox struct {
	frames []Frame  // at once,
	queue  []queued // and then these, about a page at a time
}

// queued is something that is sent in its turn: a frame, or a value, which is cut into chunks only then,
// so that it is in memory once.
type queued struct {
	Frame
	value []byte
}

// Frames returns the frames that are to be sent now. They are valid until another method is called.
func (s *Session) Frames() []Frame {
	frames := s.outbox.frames
	s.outbox.frames = frames[:0]
	return frames
}

// Queued returns how many bytes wait to be sent.
func (s *Session) Queued() (n int) {
	for _, f := range s.outbox.frames {
		n += len(f.Payload)
	}
	for i := range s.outbox.queue {
		n += len(s.outbox.queue[i].Payload) + len(s.outbox.queue[i].value)
	}
	return n
}

// send sends a frame, after everything that is queued.
func (o *outbox) send(kind FrameType, payload []byte) {
	if len(o.queue) > 0 {
		o.queue = append(o.queue, queued{Frame: Frame{kind, payload}})
		return
	}
	o.frames = append(o.frames, Frame{kind, payload})
}

// sendLast sends a frame as the last word.
func (o *outbox) sendLast(kind FrameType, payload []byte) {
	o.queue = nil
	o.send(kind, payload)
}

// sendValue sends a value in chunks, ahead of the page that it belongs to.
func (o *outbox) sendValue(value []byte) {
	o.queue = append(o.queue, queued{value: value})
}

// sendQueued sends what comes next of the queue, about a page of it.
func (o *outbox) sendQueued(pageSize int) {
	for room := pageSize; len(o.queue) > 0 && room > 0; {
		q := &o.queue[0]
		if len(q.value) == 0 {
			o.frames = append(o.frames, q.Frame)
			room -= len(q.Payload)
		} else {
			n := min(len(q.value), pageSize)
			last := byte(store.Btoi(n == len(q.value)))
			o.frames = append(o.frames, Frame{FrameChunk, append([]byte{last}, q.value[:n]...)})
			room -= n
			if q.value = q.value[n:]; last == 0 {
				continue
			}
		}
		*q = queued{}
		o.queue = o.queue[1:]
	}
}
