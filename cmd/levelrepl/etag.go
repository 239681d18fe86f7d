package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/level-replicator/replicator"
)

// tagOf returns the tag of a key: a hash of the names of its siblings, in order, so it is the same at all
// replicas that hold them. A key without a value has none. In HTTP it stands between quotes, and is strong.
func tagOf(seen []replicator.VersionID) string {
	if len(seen) == 0 {
		return ""
	}
	names := make([]string, len(seen))
	for i, id := range seen {
		names[i] = string(binary.BigEndian.AppendUint64(id.Origin[:], id.Seq))
	}
	slices.Sort(names)
	sum := sha256.Sum256([]byte(strings.Join(names, "")))
	return hex.EncodeToString(sum[:16])
}

// condition is what a write is made on. The zero condition always holds.
type condition struct {
	match     tags
	noneMatch tags
}

// tags are those that a condition names.
type tags struct {
	given bool
	any   bool // *: any value
	list  []string
}

func (ts *tags) has(tag string) bool { return tag != "" && (ts.any || slices.Contains(ts.list, tag)) }

// given reports whether there is a condition at all.
func (c *condition) given() bool { return c.match.given || c.noneMatch.given }

// check returns a [*changedError] unless the condition holds for a key with that tag.
func (c *condition) check(tag string) error {
	if c.match.given && !c.match.has(tag) || c.noneMatch.given && c.noneMatch.has(tag) {
		return &changedError{tag}
	}
	return nil
}

// changedError refuses what was asked for on a condition: the key has another tag, or none.
type changedError struct{ tag string }

func (e *changedError) Error() string {
	if e.tag == "" {
		return "the condition does not hold: the key has no value"
	}
	return "the condition does not hold: the key's tag is " + e.tag
}

// on writes on a condition: f is given the siblings for which it holds. What comes between is looked at again.
func (l *local) on(ctx context.Context, key []byte, c condition, f func(seen []replicator.VersionID) error) error {
	for {
		_, seen, err := l.read(key)
		if err != nil && !isAbsent(err) {
			return err
		}
		if err == nil && len(seen) == 0 {
			return errNoTag
		}
		if err := l.check(c, key, seen); err != nil {
			return err
		}
		switch err := f(seen); {
		case errors.Is(err, replicator.ErrLocalKey):
			return errNoTag
		case !errors.Is(err, replicator.ErrChanged):
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// check returns a [*changedError] unless a condition holds for a key with these siblings, or errNoTag if it has none because
// it never can.
func (l *local) check(c condition, key []byte, seen []replicator.VersionID) error {
	err := c.check(tagOf(seen))
	if err != nil && len(seen) == 0 && errors.Is(l.db.WriteIf(nil, []replicator.Cond{{Key: key}}, nil), replicator.ErrLocalKey) {
		return errNoTag
	}
	return err
}

// errNoTag refuses a condition on a key that can have none.
var errNoTag = errors.New("writes of the key have no names, and so it has no tag: it is in a range that is neither logged nor sent")

const noTag = "none" // on the command line: the key has no value

var tagForm = regexp.MustCompile(`^"?([0-9a-f]{32})"?$`)

// ifFlag is --if of the commands that write.
type ifFlag struct {
	text string
	c    *cobra.Command
}

func (f *ifFlag) flag(c *cobra.Command) {
	f.c = c
	c.Flags().StringVar(&f.text, "if", "", "write only if the key has this `tag`, which get --if prints; none: only if it has no value; *: only if it has one")
}

// condition returns what the flag says.
func (f *ifFlag) condition() (c condition, err error) {
	switch m := tagForm.FindStringSubmatch(f.text); {
	case !f.c.Flags().Changed("if"):
	case f.text == noTag:
		c.noneMatch = tags{given: true, any: true}
	case f.text == "*":
		c.match = tags{given: true, any: true}
	case m == nil:
		return c, &usageError{fmt.Errorf("--if %q is not a tag", f.text), "give what levelrepl get KEY --if prints, or none, or *"}
	default:
		c.match = tags{given: true, list: m[1:]}
	}
	return c, nil
}

// told returns what to tell of a write on a condition that failed: that it does not hold is an answer, and where there can
// be none it was wrong to give one.
func (a *app) told(key []byte, err error) error {
	var changed *changedError
	if errors.As(err, &changed) {
		return &foundError{a.encoding.show(key) + " was not written: " + changed.Error()}
	}
	if errors.Is(err, errNoTag) {
		return &usageError{fmt.Errorf("%s was not written: %w", a.encoding.show(key), err), "leave out --if"}
	}
	return err
}

// Conditions in HTTP, see RFC 9110, 13.1.1 and 13.1.2.

// conditionOf reads the conditions of a request.
func conditionOf(h http.Header) (c condition, err error) {
	if c.match, err = parseTags(h, "If-Match", false); err == nil {
		c.noneMatch, err = parseTags(h, "If-None-Match", true)
	}
	return c, err
}

var entityTag = regexp.MustCompile(`^\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(,|$)`)

// parseTags reads a list of entity tags. A weak one counts only if weak ones are compared.
func parseTags(h http.Header, name string, weak bool) (ts tags, err error) {
	values, given := h[http.CanonicalHeaderKey(name)]
	if !given {
		return ts, nil
	}
	ts.given = true
	text := strings.Trim(strings.Join(values, ","), " \t,")
	if text == "*" {
		ts.any = true
		return ts, nil
	}
	malformed := &httpError{http.StatusBadRequest, fmt.Sprintf(`%s: %q is neither * nor a list of tags in quotes; nothing was done`, name, text)}
	if text == "" {
		return ts, malformed
	}
	for text != "" {
		m := entityTag.FindStringSubmatch(text)
		if m == nil {
			return ts, malformed
		}
		if m[1] == "" || weak {
			ts.list = append(ts.list, m[2])
		}
		text = strings.TrimLeft(text[len(m[0]):], " \t,")
	}
	return ts, nil
}

// setTag writes the ETag of an answer, if there is one.
func setTag(h http.Header, tag string) {
	if tag != "" {
		h.Set("ETag", `"`+tag+`"`)
	}
}

// tagIn returns the tag in an answer, or "".
func tagIn(h http.Header) string {
	if m := tagForm.FindStringSubmatch(h.Get("ETag")); m != nil {
		return m[1]
	}
	return ""
}

// headers returns the condition as headers.
func (c *condition) headers() http.Header {
	h := http.Header{}
	for name, ts := range map[string]*tags{"If-Match": &c.match, "If-None-Match": &c.noneMatch} {
		switch {
		case !ts.given:
		case ts.any:
			h.Set(name, "*")
		default:
			h.Set(name, `"`+strings.Join(ts.list, `", "`)+`"`)
		}
	}
	return h
}
