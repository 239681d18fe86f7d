// Package system has the tests that need a real system around them: processes that are killed, network
// namespaces, multicast, slow proxies.
package system
