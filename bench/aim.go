package main

import "fmt"

// aim is what a row should show.
type aim struct {
	kind  aimKind
	value float64
}

type aimKind int

const (
	noAim       aimKind = iota
	leastRatio          // to the raw handle
	mostRatio           // to the raw handle
	mostOfUnits         // in the unit of the row
)

func atLeast(ratio float64) aim     { return aim{leastRatio, ratio} }
func atMostTimes(ratio float64) aim { return aim{mostRatio, ratio} }
func atMost(value float64) aim      { return aim{mostOfUnits, value} }

// met reports whether a row shows what it should.
func (a aim) met(ratio, value float64) bool {
	switch a.kind {
	case leastRatio:
		return ratio >= a.value
	case mostRatio:
		return ratio <= a.value
	case mostOfUnits:
		return value <= a.value
	}
	return true
}

// text is how the aim reads in a table.
func (a aim) text(unit string) string {
	switch a.kind {
	case leastRatio:
		return fmt.Sprintf("≥ %.2f ×", a.value)
	case mostRatio:
		return fmt.Sprintf("≤ %.2f ×", a.value)
	case mostOfUnits:
		return "≤ " + figure(a.value, unit)
	}
	return ""
}
