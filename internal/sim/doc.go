// Package sim runs the algorithm and its sessions against a model: simulated clusters that are
// driven from a seed, sessions over an in-memory wire, and the golden files of the formats. It is
// for tests only.
package sim
