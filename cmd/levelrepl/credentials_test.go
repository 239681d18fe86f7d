package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// issue writes the certificate of a new authority, and one that it signed, over the files
// that --tls-ca, --tls-cert and --tls-key name.
func issue(t *testing.T, dir string, serial int64) (flags []string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"ca": {Type: "CERTIFICATE", Bytes: der}, "cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: secret},
	} {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
		flags = append(flags, "--tls-"+name, file)
	}
	return flags
}

// serialOf is that of the certificate which a replica presents to peers.
func serialOf(t *testing.T, addr string) (serial int64) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	_ = tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"level-replicator/1"},
		VerifyConnection: func(cs tls.ConnectionState) error {
			serial = cs.PeerCertificates[0].SerialNumber.Int64()
			return nil
		},
	}).Handshake()
	return serial
}

func TestRenewedCertificatesAreReadWhileTheReplicaRuns(t *testing.T) {
	t.Parallel()
	files := t.TempDir()
	flags := append(issue(t, files, 1), "--max-interval", "100ms")
	a := serve(t, filepath.Join(t.TempDir(), "a"), flags...)
	b := serve(t, filepath.Join(t.TempDir(), "b"), append(flags, "--peer", a.peer)...)
	must(t, "put", "k", "1", "--replicas", "1", "--addr", a.http)
	require.EqualValues(t, 1, serialOf(t, a.peer))

	issue(t, files, 2)
	eventually(t, func() bool { return serialOf(t, a.peer) == 2 && serialOf(t, b.peer) == 2 })
	eventually(t, func() bool {
		code, _, _ := cli("put", "k", "2", "--replicas", "1", "--addr", b.http)
		return code == exitOK
	})

	// Half of a renewal: what was read before holds on.
	require.NoError(t, os.WriteFile(filepath.Join(files, "key"), []byte("half"), 0o600))
	eventually(t, func() bool { _ = serialOf(t, a.peer); return strings.Contains(a.log.String(), "could not be renewed") })
	must(t, "put", "k", "3", "--replicas", "1", "--addr", a.http)
	issue(t, files, 3)
	eventually(t, func() bool { return serialOf(t, a.peer) == 3 })
}

func TestSecretIsChangedWhileReplicasRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string) string {
		text, err := os.ReadFile(file(name))
		require.NoError(t, err)
		return string(text)
	}
	must(t, "secret", file("one"))
	must(t, "secret", file("two"))
	one, two := read("one"), read("two")
	write := func(replica, own, old string) {
		require.NoError(t, os.WriteFile(file(replica+".old"), []byte(old), 0o600))
		require.NoError(t, os.WriteFile(file(replica+".own"), []byte(own), 0o600))
	}
	flags := func(replica string, more ...string) []string {
		return append(more, "--secret-file", file(replica+".own"), "--old-secret-file", file(replica+".old"), "--max-interval", "100ms")
	}
	write("a", one, "")
	write("b", one, "")
	a := serve(t, filepath.Join(t.TempDir(), "a"), flags("a")...)
	b := serve(t, filepath.Join(t.TempDir(), "b"), flags("b", "--peer", a.peer)...)
	for _, pass := range []struct{ own, old string }{{one, two}, {two, one + two}, {two, ""}} {
		for _, replica := range []string{"a", "b"} {
			write(replica, pass.own, pass.old)
			for _, n := range []*served{a, b} {
				must(t, "put", "k", replica, "--replicas", "1", "--addr", n.http)
			}
		}
	}
	write("b", one, "")
	eventually(t, func() bool {
		_, out, _ := cli("status", "--json", b.http)
		return strings.Contains(out, "secret")
	}, "it is refused")
}

func TestSIGHUPReadsAgainAndDoesNotEndTheReplica(t *testing.T) {
	bin, files := build(t), t.TempDir()
	stderr, err := os.CreateTemp(files, "log")
	require.NoError(t, err)
	c, peer, http := program(t, bin, 256, stderr, issue(t, files, 1)...)
	logged := func() string {
		text, err := os.ReadFile(stderr.Name())
		require.NoError(t, err)
		return string(text)
	}
	issue(t, files, 2)
	require.NoError(t, c.Process.Signal(syscall.SIGHUP))
	eventually(t, func() bool { return strings.Contains(logged(), "were read again") })
	require.EqualValues(t, 2, serialOf(t, peer))
	require.NoError(t, os.Remove(filepath.Join(files, "key")))
	require.NoError(t, c.Process.Signal(syscall.SIGHUP))
	eventually(t, func() bool { return strings.Contains(logged(), "cannot read secrets or certificates again") })
	require.Equal(t, 204, ask(t, "PUT", "http://"+http+"/kv/k", "v").StatusCode)
	require.NoError(t, c.Process.Signal(syscall.SIGTERM))
	require.NoError(t, c.Wait())
}
