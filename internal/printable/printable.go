// Package printable makes text that others chose safe for logs and terminals.
package printable

import (
	"strings"
	"unicode"
)

// Printable makes what others wrote, a peer, a certificate, a name server, safe for logs
// and terminals, whoever writes those and however. It is called where such a text comes
// in, so that nothing behind has to think of it.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
