package transport

import "golang.org/x/time/rate"

// Rates bound the bytes per second over all connections that share them; a
// nil one does not.
type Rates struct{ read, write *rate.Limiter }

// NewRates bounds reading and writing to bytes per second; 0 is no bound.
func NewRates(read, write int) Rates {
	limiter := func(perSecond int) *rate.Limiter {
		if perSecond <= 0 {
			return nil
		}
		// A burst of a tenth of a second lets connections take turns often.
		return rate.NewLimiter(rate.Limit(perSecond), max(perSecond/10, 1<<10))
	}
	return Rates{limiter(read), limiter(write)}
}
