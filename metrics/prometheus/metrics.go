package prometheus

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/level-replicator/replicator"
)

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// metric is a figure of a T, the status of a server or of a peer.
type metric[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	met   bool // of peers: only those that a session was held with have it
	value func(*T) float64
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("replicator_"+name, help, labels, nil)
}

func ofServer(name, help string, kind prometheus.ValueType, value func(*status) float64) metric[status] {
	return metric[status]{describe(name, help), kind, false, value}
}

func ofPeer(name, help string, kind prometheus.ValueType, value func(*peer) float64) metric[peer] {
	return metric[peer]{describe(name, help, "peer", "name"), kind, false, value}
}

// ofMetPeer is a figure that only a peer has with which a session was held.
func ofMetPeer(name, help string, value func(*peer) float64) metric[peer] {
	m := ofPeer(name, help, gauge, value)
	m.met = true
	return m
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

type (
	status = replicator.Status
	peer   = replicator.PeerStatus
)

var server = []metric[status]{
	ofServer("ready", "Whether the first attempt to replicate is over.", gauge, func(s *status) float64 { return truth(s.Ready) }),
	ofServer("failed", "Whether the store failed, so that writes are refused.", gauge, func(s *status) float64 { return truth(s.Failed != "") }),
	ofServer("read_only", "Whether the server takes nothing in.", gauge, func(s *status) float64 { return truth(s.ReadOnly) }),
	ofServer("alone", "Whether every configured address leads to the server itself, and nobody else is there.", gauge, func(s *status) float64 { return truth(s.Alone) }),
	ofServer("keys", "Keys with a value.", gauge, func(s *status) float64 { return float64(s.Keys) }),
	ofServer("tombstones", "Deleted keys that are still remembered.", gauge, func(s *status) float64 { return float64(s.Tombstones) }),
	ofServer("conflicts", "Keys in conflict.", gauge, func(s *status) float64 { return float64(s.Conflicts) }),
	ofServer("unsaved_writes", "Writes known here that are not known to be on this disk.", gauge, func(s *status) float64 { return float64(s.Unsaved) }),
	ofServer("velocity", "Changes per second, decaying with a half-life of 5 s.", gauge, func(s *status) float64 { return s.Velocity }),
	ofServer("round_pause_seconds", "Pause between rounds of sessions, at this velocity.", gauge, func(s *status) float64 { return s.Pause.Seconds() }),
	ofServer("purge_blockers", "Members that hold back the forgetting of deletions.", gauge, func(s *status) float64 { return float64(len(s.Blockers)) }),
	ofServer("long_works", "Long works under way: adoption, verification, long pulls and repairs.", gauge, func(s *status) float64 { return float64(len(s.Work)) }),
	ofServer("held_back_versions", "Versions at peers that are not taken here, as value or key is above MaxValue or MaxKey.", gauge,
		func(s *status) float64 { return float64(s.HeldBack) }),
	ofServer("sessions_total", "Sessions with peers since the opening.", counter, func(s *status) float64 { return float64(s.Sessions) }),
	ofServer("pulled_versions_total", "Versions taken from peers since the opening.", counter, func(s *status) float64 { return float64(s.Pulled) }),
	ofServer("served_versions_total", "Versions sent to peers since the opening.", counter, func(s *status) float64 { return float64(s.Served) }),
	ofServer("received_bytes_total", "Bytes received from peers since the opening.", counter, func(s *status) float64 { return float64(s.BytesIn) }),
	ofServer("sent_bytes_total", "Bytes sent to peers since the opening.", counter, func(s *status) float64 { return float64(s.BytesOut) }),
	ofServer("mismatched_versions_total", "Versions that had to come back after a digest differed, which means a damaged store.", counter,
		func(s *status) float64 { return float64(s.Mismatches) }),
}

var peers = []metric[peer]{
	ofPeer("peer_up", "Whether the peer is reached: 1 if the last session ended well, or it dials us.", gauge, func(p *peer) float64 { return truth(p.State == "ok") }),
	ofMetPeer("peer_agrees", "Whether the peer held exactly what this server holds now, by digest, when last asked.", func(p *peer) float64 { return truth(p.Agrees) }),
	ofMetPeer("peer_differs", "Whether the peer claimed the same and held something else when last asked.", func(p *peer) float64 { return truth(p.Differs) }),
	ofMetPeer("peer_lag_versions", "Writes known here that the peer does not claim.", func(p *peer) float64 { return float64(p.Lag) }),
	ofMetPeer("peer_lag_seconds", "At most so long ago the oldest write that the peer does not claim came to be known here.", func(p *peer) float64 { return p.Behind.Seconds() }),
	ofMetPeer("peer_ahead_versions", "Writes that the peer claims and that are not known here.", func(p *peer) float64 { return float64(p.Ahead) }),
	ofMetPeer("peer_unsaved_writes", "Writes known here that the peer did not report to be on its disk.", func(p *peer) float64 { return float64(p.Unsaved) }),
	ofMetPeer("peer_last_session_timestamp_seconds", "When the last good session with the peer ended, in Unix time.", func(p *peer) float64 { return float64(p.Last.UnixMilli()) / 1000 }),
	ofPeer("peer_received_bytes_total", "Bytes received from the peer since the opening.", counter, func(p *peer) float64 { return float64(p.BytesIn) }),
	ofPeer("peer_sent_bytes_total", "Bytes sent to the peer since the opening.", counter, func(p *peer) float64 { return float64(p.BytesOut) }),
}
