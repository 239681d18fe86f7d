package schedule_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator/internal/schedule"
	"github.com/stretchr/testify/require"
)

func TestPickChoosesPeersThatAnswerAndProbesBesideThem(t *testing.T) {
	r := &schedule.Rounds{Config: schedule.Config{Rand: rand.New(rand.NewPCG(1, 1))}}
	cs := []schedule.Candidate{
		0: {Answers: true},
		1: {Answers: true, Busy: true},
		2: {Answers: true, Rests: start.Add(1)},
		3: {Answers: true},
		4: {Tried: true},
		5: {},
		6: {Lately: true, Tried: true},
		7: {Rests: start.Add(1)},
		8: {Answers: true},
	}
	live, probed := r.Pick(cs, 8, 8, start, nil)
	require.ElementsMatch(t, []int{0, 3, 8}, live)
	require.Equal(t, []int{6, 5, 4}, probed, "first those that answered a while ago, then those never tried")

	live, probed = r.Pick(cs, 2, 1, start, func(i int) bool { return i == 3 || i == 6 })
	require.ElementsMatch(t, []int{0, 8}, live)
	require.Equal(t, []int{5}, probed)
}

func TestPickLeavesOutAllOthersBeforeTheNextOfTheRing(t *testing.T) {
	r := &schedule.Rounds{Config: schedule.Config{Rand: rand.New(rand.NewPCG(1, 1))}}
	cs := make([]schedule.Candidate, 100)
	for i := range cs {
		cs[i] = schedule.Candidate{Answers: true, Next: i == 50}
	}
	live, _ := r.Pick(cs, 1, 0, start, nil)
	require.Equal(t, []int{50}, live)
	live, _ = r.Pick(cs, 4, 0, start, func(i int) bool { return i == 50 })
	require.Len(t, live, 4)
	require.NotContains(t, live, 50)
}

func TestDeadAddressesTakeThePlaceOfNoPeerThatAnswers(t *testing.T) {
	r := &schedule.Rounds{Config: schedule.Config{Rand: rand.New(rand.NewPCG(1, 1))}}
	cs := make([]schedule.Candidate, 1000)
	for i := range 4 {
		cs[250*i].Answers = true
	}
	live, probed := r.Pick(cs, 4, schedule.ProbesPerRound, start, nil)
	require.ElementsMatch(t, []int{0, 250, 500, 750}, live)
	require.Len(t, probed, schedule.ProbesPerRound)

	for i := 1; i <= schedule.MaxDialing-3; i++ {
		cs[i].Busy = true
	}
	_, probed = r.Pick(cs, 4, schedule.ProbesPerRound, start, nil)
	require.Len(t, probed, 3, "at most 64 are being dialed")
}

func TestPickIsRandom(t *testing.T) {
	r := &schedule.Rounds{Config: schedule.Config{Rand: rand.New(rand.NewPCG(1, 1))}}
	cs := slices.Repeat([]schedule.Candidate{{Answers: true}}, 10)
	times := make([]int, len(cs))
	for range 1000 {
		live, _ := r.Pick(cs, 1, 0, start, nil)
		times[live[0]]++
	}
	for i, n := range times {
		require.InDelta(t, 100, n, 50, i)
	}
}

func TestNextProbe(t *testing.T) {
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	_, ok, full := schedule.NextProbe([]schedule.Candidate{{Answers: true}, {Busy: true}})
	require.False(t, ok || full, "nothing is to be tried")
	next, ok, full := schedule.NextProbe([]schedule.Candidate{{Rests: at(3)}, {Answers: true, Rests: at(1)}, {Rests: at(2)}})
	require.True(t, ok && !full)
	require.Equal(t, at(2), next)
	_, ok, full = schedule.NextProbe(append(slices.Repeat([]schedule.Candidate{{Busy: true}}, schedule.MaxDialing), schedule.Candidate{}))
	require.True(t, !ok && full, "as many are being dialed as may be")
}
