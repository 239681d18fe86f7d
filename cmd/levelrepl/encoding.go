package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// encoding is the form of keys and values, which may be any bytes, on the command line and
// in output. Each parses what it shows.
type encoding int

const (
	auto      encoding = iota // plain if printable, else quoted
	quoted                    // as a Go string, always
	base64Enc                 // standard base64
	raw                       // the bytes as they are
)

var encodingNames = []string{"auto", "quoted", "base64", "raw"}

func (e *encoding) String() string { return encodingNames[*e] }

// Type names the flag's value in help texts.
func (e *encoding) Type() string { return "encoding" }

// Set reads the flag.
func (e *encoding) Set(s string) error {
	for i, name := range encodingNames {
		if s == name {
			*e = encoding(i)
			return nil
		}
	}
	return fmt.Errorf("want one of %s", strings.Join(encodingNames, ", "))
}

// show returns bytes as text.
func (e encoding) show(b []byte) string {
	switch s := string(b); {
	case e == base64Enc:
		return base64.StdEncoding.EncodeToString(b)
	case e == raw, e == auto && plain(s):
		return s
	default:
		return strconv.Quote(s)
	}
}

// plain reports whether a text can be shown as it is: it is unambiguous, and harmless to a
// terminal and to a line of output.
func plain(s string) bool {
	if s == "" || !utf8.ValidString(s) || s[0] == '"' || s[0] == ' ' || s[len(s)-1] == ' ' {
		return false
	}
	return !strings.ContainsFunc(s, unprintable)
}

// parse reads what show returns.
func (e encoding) parse(s string) ([]byte, error) {
	switch {
	case e == base64Enc:
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, &usageError{fmt.Errorf("%q is not base64: %w", s, err), "give it in another form with --encoding"}
		}
		return b, nil
	case e == raw, e == auto && !strings.HasPrefix(s, `"`):
		return []byte(s), nil
	}
	text := s
	if !strings.HasPrefix(text, `"`) {
		text = `"` + text + `"`
	}
	text, err := strconv.Unquote(text)
	if err != nil {
		return nil, &usageError{fmt.Errorf("%s is not a quoted string", s), `quote it as in Go, "\xff\x00a\n", or give it as it is with --encoding raw`}
	}
	return []byte(text), nil
}

// safe returns a text that a peer or another program chose in a form that is safe to print:
// on one line, with whatever would control a terminal or reverse text escaped as in Go.
func safe(text string) string {
	if !strings.ContainsFunc(text, unprintable) && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for i, size := 0, 0; i < len(text); i += size {
		var r rune
		if r, size = utf8.DecodeRuneInString(text[i:]); unprintable(r) || r == utf8.RuneError {
			q := strconv.Quote(text[i : i+size])
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// safeTexts makes all texts in what v points to safe to print.
func safeTexts(v any) { walkTexts(reflect.ValueOf(v).Elem()) }

func walkTexts(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(safe(v.String()))
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			for i := range v.Len() {
				walkTexts(v.Index(i))
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				walkTexts(v.Field(i))
			}
		}
	}
}

func unprintable(r rune) bool { return !strconv.IsPrint(r) }

// safeJSON returns the same JSON with all unprintable characters escaped: JSON itself
// escapes only the first 32. Those beyond ASCII occur in strings only.
func safeJSON(b []byte) []byte {
	if !bytes.ContainsFunc(b, unprintableInJSON) {
		return b
	}
	out := make([]byte, 0, len(b)+16)
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		switch {
		case !unprintableInJSON(r):
			out = append(out, b[:size]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[size:]
	}
	return out
}

func unprintableInJSON(r rune) bool { return unprintable(r) && r != '\n' && r != '\t' && r != '\r' }

// safeJSONWriter writes JSON through safeJSON. Each write must end with a whole character.
type safeJSONWriter struct{ io.Writer }

func (w safeJSONWriter) Write(b []byte) (int, error) {
	if _, err := w.Writer.Write(safeJSON(b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// octets are bytes in JSON: a string if they are UTF-8, else {"base64": "…"}.
type octets []byte

type encodedOctets struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON writes the one form or the other.
func (o octets) MarshalJSON() ([]byte, error) {
	if utf8.Valid(o) {
		b, err := json.Marshal(string(o))
		return safeJSON(b), err
	}
	return json.Marshal(encodedOctets{o})
}

// UnmarshalJSON reads either.
func (o *octets) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		*o = octets(s)
		return err
	}
	var e encodedOctets
	err := json.Unmarshal(b, &e)
	*o = octets(e.Base64)
	return err
}
