package transport

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"
)

// LeastSecret is the least length of a secret in bytes.
const LeastSecret = 16

// newShared pins the keys derived from the secrets. The certificate only carries the key: no
// clock, name or authority is consulted about it.
func newShared(cluster string, secret []byte, old [][]byte) (*Security, error) {
	own, err := secretKey(cluster, secret)
	if err != nil {
		return nil, err
	}
	var accepted []ed25519.PublicKey
	var proofs [][]byte
	for _, s := range append([][]byte{secret}, old...) {
		key, err := secretKey(cluster, s)
		if err != nil {
			return nil, err
		}
		proof, err := derive(s, "level-replicator/1 tickets of cluster "+cluster, sha256.Size)
		if err != nil {
			return nil, err
		}
		accepted, proofs = append(accepted, key.Public().(ed25519.PublicKey)), append(proofs, proof)
	}
	cert, err := secretCertificate(own)
	if err != nil {
		return nil, err
	}
	s := &Security{tickets: newTickets(proofs), secrets: append([][]byte{bytes.Clone(secret)}, cloneAll(old)...), Config: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{cert},
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // VerifyConnection verifies, by the pinned keys
		NextProtos:         []string{protocolALPN},
		// Not VerifyPeerCertificate: a resumed connection skips that.
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyShared(cs, accepted)
		},
	}}
	s.server = s.serverConfig()
	return s, nil
}

func cloneAll(list [][]byte) (clones [][]byte) {
	for _, b := range list {
		clones = append(clones, bytes.Clone(b))
	}
	return clones
}

// secretKey derives the key that all replicas of a cluster share. HKDF does not slow down a guesser
// and need not: secrets are generated and have at least 16 bytes.
func secretKey(cluster string, secret []byte) (ed25519.PrivateKey, error) {
	seed, err := derive(secret, "level-replicator/1 identity of cluster "+cluster, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func derive(secret []byte, purpose string, size int) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, purpose, size)
	if err != nil {
		return nil, fmt.Errorf("replicator: Options.Secret: %w", err)
	}
	return key, nil
}

// secretCertificate wraps a key in a certificate that is valid at any time that a machine
// without a clock battery may believe in.
func secretCertificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "level-replicator"},
		NotBefore:    time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("replicator: Options.Secret: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func verifyShared(cs tls.ConnectionState, accepted []ed25519.PublicKey) error {
	if err := verifyProtocol(cs); err != nil {
		return err
	}
	if n := len(cs.PeerCertificates); n != 1 {
		return fmt.Errorf("the peer presents %d certificates, want the one made from the secret", n)
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return ErrOtherSecret
	}
	for _, a := range accepted {
		if a.Equal(key) {
			return nil
		}
	}
	return ErrOtherSecret
}
