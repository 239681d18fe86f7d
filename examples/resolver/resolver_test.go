package main

import (
	"context"
	"log"
	"os"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/replicatortest"
	"github.com/stretchr/testify/require"
)

func Example() {
	if err := run(context.Background(), os.Stdout); err != nil {
		log.Fatal(err)
	}
	// Output:
	// Each writes the cart, unseen by the other:
	//   laptop  {"coupon":"SPRING","items":{"apples":3,"bread":1}}
	//   phone   {"coupon":"SPRING","items":{"apples":5,"milk":2}}
	// After a session, both return the merged cart:
	//   laptop  {"coupon":"SPRING","items":{"apples":5,"bread":1,"milk":2}}
	//           in conflict, 2 versions are kept
	//   phone   {"coupon":"SPRING","items":{"apples":5,"bread":1,"milk":2}}
	//           in conflict, 2 versions are kept
	// A write resolves the conflict:
	//   laptop  {"coupon":"SPRING","items":{"apples":5,"bread":1,"milk":2}}
	//           no conflict
	//   phone   {"coupon":"SPRING","items":{"apples":5,"bread":1,"milk":2}}
	//           no conflict
}

func version(clock uint64, value string) replicator.Version {
	return replicator.Version{Clock: clock, Origin: replicator.Origin{byte(clock)}, Seq: 1, Value: []byte(value)}
}

func TestMergeIsTheSameBothWaysRound(t *testing.T) {
	a := version(1, `{"coupon":"OLD","items":{"apples":1}}`)
	b := version(2, `{"coupon":"NEW","items":{"bread":1}}`)
	want := `{"coupon":"NEW","items":{"apples":1,"bread":1}}`
	require.Equal(t, want, string(mergeCarts(key, a, b).Value))
	require.Equal(t, want, string(mergeCarts(key, b, a).Value))
}

func TestCouponOfTheOlderCartStaysIfTheNewerHasNone(t *testing.T) {
	got := mergeCarts(key, version(1, `{"coupon":"OLD","items":null}`), version(2, `{"items":null}`))
	require.JSONEq(t, `{"coupon":"OLD","items":{}}`, string(got.Value))
}

func TestOnlyCartsAreMerged(t *testing.T) {
	a, b := version(1, `{"items":{}}`), version(2, "not JSON")
	require.Equal(t, b, mergeCarts(key, a, b))
	b.Value, b.Deleted = nil, true
	require.Equal(t, b, mergeCarts(key, a, b))
}

func TestMergeKeepsTheContractOfResolvers(t *testing.T) {
	replicatortest.TestResolver(t, mergeCarts,
		[]byte(`{"coupon":"OLD","items":{"apples":1}}`), []byte(`{"items":{"bread":1}}`), []byte(`{"items":null}`), []byte("not JSON"))
}
