//! How long to wait before the next try.

use std::time::Duration;

use rand::Rng;

/// First delay: about one round trip between regions, so that a single lost packet costs little.
pub const BASE: Duration = Duration::from_millis(100);

/// Longest delay: a peer that comes back is noticed within it, and 250 clusters that retry this often are 17 tries per
/// second at a broker.
pub const MAX: Duration = Duration::from_secs(15);

/// Growth of the ceiling per try, when the jitter is [`Jitter::Full`].
pub const FULL_FACTOR: f64 = 2.0;

/// Growth over the previous delay, when the jitter is [`Jitter::Decorrelated`]; three keeps the mean doubling.
pub const DECORRELATED_FACTOR: f64 = 3.0;

/// How chance enters. Both are from "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// Between zero and a ceiling that grows: spreads a crowd of clients most evenly.
    Full,
    /// Between `base` and a multiple of the previous delay: never at once, good for one client that retries alone.
    Decorrelated,
}

/// A sequence of growing, jittered delays. Bounded by `max`, unbounded in number: who retries decides when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    factor: f64,
    jitter: Jitter,
    /// The ceiling (full) or the delay (decorrelated) that the next one grows from; `None` before the first try.
    previous: Option<Duration>,
}

impl Backoff {
    /// Full jitter with [`FULL_FACTOR`].
    pub fn full(base: Duration, max: Duration) -> Backoff {
        Backoff {
            base,
            max,
            factor: FULL_FACTOR,
            jitter: Jitter::Full,
            previous: None,
        }
    }

    /// Decorrelated jitter with [`DECORRELATED_FACTOR`].
    pub fn decorrelated(base: Duration, max: Duration) -> Backoff {
        Backoff {
            base,
            max,
            factor: DECORRELATED_FACTOR,
            jitter: Jitter::Decorrelated,
            previous: None,
        }
    }

    /// Grows by `factor` instead; below 1 counts as 1.
    pub fn with_factor(self, factor: f64) -> Backoff {
        Backoff {
            factor: factor.max(1.0),
            ..self
        }
    }

    /// The delay before the next try.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        match self.jitter {
            Jitter::Full => {
                let ceiling = self
                    .previous
                    .map_or(self.base, |previous| self.grown(previous))
                    .min(self.max);
                self.previous = Some(ceiling);
                uniform(rng, Duration::ZERO, ceiling)
            }
            Jitter::Decorrelated => {
                let ceiling = self.grown(self.previous.unwrap_or(self.base));
                let delay = uniform(rng, self.base, ceiling).min(self.max);
                self.previous = Some(delay);
                delay
            }
        }
    }

    /// The longest delay it ever gives.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// A try succeeded: start over with `base`.
    pub fn reset(&mut self) {
        self.previous = None;
    }

    /// At most `max` times the factor, so that it cannot overflow.
    fn grown(&self, previous: Duration) -> Duration {
        let secs = previous.min(self.max).as_secs_f64() * self.factor;
        Duration::try_from_secs_f64(secs).unwrap_or(self.max)
    }
}

impl Default for Backoff {
    /// Full jitter between [`BASE`] and [`MAX`].
    fn default() -> Backoff {
        Backoff::full(BASE, MAX)
    }
}

fn uniform(rng: &mut impl Rng, low: Duration, high: Duration) -> Duration {
    if low < high {
        rng.random_range(low..=high)
    } else {
        low
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// The longest of many first, second, … delays: the ceiling that each try may reach.
    fn ceilings(backoff: &Backoff, tries: usize) -> Vec<Duration> {
        let mut longest = vec![Duration::ZERO; tries];
        for seed in 0..2_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = backoff.clone();
            for slot in &mut longest {
                *slot = (*slot).max(backoff.next(&mut rng));
            }
        }
        longest
    }

    #[test]
    fn full_jitter_doubles_its_ceiling_up_to_the_maximum() {
        let backoff = Backoff::full(Duration::from_millis(100), Duration::from_millis(700));
        for (seen, ceiling_millis) in ceilings(&backoff, 5).into_iter().zip([100, 200, 400, 700, 700]) {
            let ceiling = Duration::from_millis(ceiling_millis);
            assert!(
                seen <= ceiling && seen > ceiling.mul_f64(0.95),
                "{seen:?} of {ceiling:?}"
            );
        }
    }

    #[test]
    fn reset_starts_over() {
        let mut rng = StdRng::seed_from_u64(1);
        let fresh = Backoff::default();
        let mut used = fresh.clone();
        for _ in 0..10 {
            used.next(&mut rng);
        }
        used.reset();
        assert_eq!(used, fresh);
    }

    proptest! {
        #[test]
        fn delays_stay_in_bounds(
            base in 0u64..2_000, max in 0u64..60_000, factor in 0.0f64..1e9, seed: u64, decorrelated: bool,
        ) {
            let (base, max) = (Duration::from_millis(base), Duration::from_millis(max));
            let make = if decorrelated { Backoff::decorrelated } else { Backoff::full };
            let mut backoff = make(base, max).with_factor(factor);
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..50 {
                let delay = backoff.next(&mut rng);
                prop_assert!(delay <= max);
                prop_assert!(!decorrelated || delay >= base.min(max));
            }
        }
    }
}
