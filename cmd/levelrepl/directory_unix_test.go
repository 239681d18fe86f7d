//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDirectoryWithoutPermissionIsCalledThat(t *testing.T) {
	dir := replicaDir(t, "k", "v")
	require.NoError(t, os.Chmod(dir, 0))
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	bin := build(t)
	for _, args := range [][]string{{"get", "k", "--dir", dir}, {"verify", dir}, {"put", "k", "v", "--dir", dir}, {"adopt", dir}} {
		c := exec.Command(bin, args...)
		if os.Geteuid() == 0 { // who may read everything
			for p := c.Path; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
				require.NoError(t, os.Chmod(p, 0o755))
			}
			for p := filepath.Dir(dir); p != "/tmp" && p != "/"; p = filepath.Dir(p) {
				require.NoError(t, os.Chmod(p, 0o755))
			}
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		out, err := c.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "permission denied", args)
		require.Contains(t, string(out), "run this as the user that owns the directory", args)
	}
}
