package prometheus

import (
	"cmp"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/level-replicator/replicator"
)

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// metric is a metric of a T, the status of a replica or of a peer.
type metric[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	met   bool // of peers: only after the first session
	value func(*T) float64
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("replicator_"+name, help, labels, nil)
}

func ofReplica(name, help string, kind prometheus.ValueType, value func(*status) float64) metric[status] {
	return metric[status]{describe(name, help), kind, false, value}
}

func ofPeer(name, help string, kind prometheus.ValueType, value func(*peer) float64) metric[peer] {
	return metric[peer]{describe(name, help, "peer", "name"), kind, false, value}
}

// ofMetPeer returns a metric that only peers have with which there was a session.
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

var ofReplicas = []metric[status]{
	ofReplica("ready", "Whether the first attempt to replicate is over.", gauge, func(s *status) float64 { return truth(s.Ready) }),
	ofReplica("failed", "Whether the store failed, so that writes are refused.", gauge, func(s *status) float64 { return truth(s.Failed != "") }),
	ofReplica("read_only", "Whether the replica is read-only: it serves its peers and pulls nothing.", gauge, func(s *status) float64 { return truth(s.ReadOnly) }),
	ofReplica("alone", "Whether every configured address leads to the replica itself, and no other is known.", gauge, func(s *status) float64 { return truth(s.Alone) }),
	ofReplica("counting", "Whether the replica still counts what it holds, after an opening that followed a crash; until then keys, tombstones and conflicts are of a part.", gauge, func(s *status) float64 { return truth(s.Counting) }),
	ofReplica("keys", "Keys with a value.", gauge, func(s *status) float64 { return float64(s.Keys) }),
	ofReplica("tombstones", "Deleted keys that are not purged yet.", gauge, func(s *status) float64 { return float64(s.Tombstones) }),
	ofReplica("conflicts", "Keys in conflict.", gauge, func(s *status) float64 { return float64(s.Conflicts) }),
	ofReplica("unsaved_writes", "Writes held here that are not known to be on this disk.", gauge, func(s *status) float64 { return float64(s.NotDurable) }),
	ofReplica("velocity", "Changes per second, decaying with a half-life of 5 s.", gauge, func(s *status) float64 { return s.Velocity }),
	ofReplica("round_pause_seconds", "Pause between gossip rounds, at this velocity; the longest while live sessions carry the changes.", gauge, func(s *status) float64 { return s.Interval.Seconds() }),
	ofReplica("live_sessions", "Sessions whose connection stays open, over which news is pushed.", gauge, func(s *status) float64 { return float64(s.Live) }),
	ofReplica("purge_blockers", "Members that keep tombstones from being purged.", gauge, func(s *status) float64 { return float64(len(s.Blockers)) }),
	ofReplica("long_works", "Long operations under way: adoption, verification, counting after a crash, long pulls and repairs.", gauge, func(s *status) float64 { return float64(len(s.Work)) }),
	ofReplica("held_back_versions", "Versions at peers that are not merged here, since value or key is above MaxValue or MaxKey.", gauge,
		func(s *status) float64 { return float64(s.HeldBack) }),
	ofReplica("sessions_total", "Sessions with peers since the database was opened; one that goes on live counts once.", counter, func(s *status) float64 { return float64(s.Sessions) }),
	ofReplica("pulled_versions_total", "Versions pulled from peers, or pushed by them, since the database was opened.", counter, func(s *status) float64 { return float64(s.Pulled) }),
	ofReplica("served_versions_total", "Versions sent to peers since the database was opened.", counter, func(s *status) float64 { return float64(s.Served) }),
	ofReplica("pushes_total", "Pushes to peers in live sessions since the database was opened.", counter, func(s *status) float64 { return float64(s.Pushes) }),
	ofReplica("duplicate_versions_total", "Versions that peers pushed and that were known here, since the database was opened.", counter, func(s *status) float64 { return float64(s.Duplicates) }),
	ofReplica("received_bytes_total", "Bytes received from peers since the database was opened.", counter, func(s *status) float64 { return float64(s.BytesIn) }),
	ofReplica("sent_bytes_total", "Bytes sent to peers since the database was opened.", counter, func(s *status) float64 { return float64(s.BytesOut) }),
	ofReplica("mismatched_versions_total", "Versions that came back after digests differed, which means a corrupted store.", counter,
		func(s *status) float64 { return float64(s.Mismatches) }),
}

var delay = describe("replication_delay_seconds",
	"How long versions took from the write at their origin to being visible here, by the clocks of the two, whose difference is in it. "+
		"name is that of the replica, or the short origin if that is not known.", "origin", "name")

// delayOf returns the replication delay of one origin, or of those that have no entry of their own.
func delayOf(d *replicator.Delay) prometheus.Metric {
	buckets := make(map[float64]uint64, len(d.Buckets))
	for _, b := range d.Buckets {
		buckets[b.Bound.Seconds()] = uint64(b.Count)
	}
	origin, name := d.Origin.String(), cmp.Or(label(d.Name), d.Origin.Short())
	if (d.Origin == replicator.Origin{}) {
		origin, name = "", "others"
	}
	return prometheus.MustNewConstHistogram(delay, uint64(d.Count), d.Sum.Seconds(), buckets, origin, name)
}

var ofPeers = []metric[peer]{
	ofPeer("peer_up", "Whether the peer is reached: 1 if the last session succeeded, or if it dials us.", gauge, func(p *peer) float64 { return truth(p.State == replicator.PeerOK) }),
	ofPeer("peer_live", "Whether a session with the peer is live.", gauge, func(p *peer) float64 { return truth(!p.Live.IsZero()) }),
	ofMetPeer("peer_agrees", "Whether the peer held exactly what this replica holds now, by digest, when a session last began.", func(p *peer) float64 { return truth(p.Agrees) }),
	ofMetPeer("peer_differs", "Whether the peer had the same version vector and held something else when last asked.", func(p *peer) float64 { return truth(p.Differs) }),
	ofMetPeer("peer_lag_versions", "Writes held here that the peer's version vector does not cover.", func(p *peer) float64 { return float64(p.Lag) }),
	ofMetPeer("peer_lag_seconds", "Upper bound of the age of the oldest write held here that the peer's version vector does not cover.", func(p *peer) float64 { return p.LagTime.Seconds() }),
	ofMetPeer("peer_ahead_versions", "Writes that the peer's version vector covers and this replica's does not.", func(p *peer) float64 { return float64(p.Ahead) }),
	ofMetPeer("peer_unsaved_writes", "Writes held here that the peer has not reported to be on its disk.", func(p *peer) float64 { return float64(p.NotDurable) }),
	ofMetPeer("peer_last_session_timestamp_seconds", "When the last successful session with the peer ended, or something last went over a live one, in Unix time.", func(p *peer) float64 { return float64(p.Last.UnixMilli()) / 1000 }),
	ofPeer("peer_received_bytes_total", "Bytes received from the peer since the database was opened.", counter, func(p *peer) float64 { return float64(p.BytesIn) }),
	ofPeer("peer_sent_bytes_total", "Bytes sent to the peer since the database was opened.", counter, func(p *peer) float64 { return float64(p.BytesOut) }),
}
