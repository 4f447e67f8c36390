//! When a certificate is renewed: at half its life, a little earlier by chance.

use std::time::{Duration, SystemTime};

/// The part of a life, in percent, over which renewals are spread ahead of half life, so that a clusterset that
/// was started at once does not renew at once.
pub const RENEW_SPREAD_PERCENT: u32 = 10;

/// The time during which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second of validity.
    pub not_before: SystemTime,
    /// Last second of validity.
    pub not_after: SystemTime,
}

impl Validity {
    /// How long the certificate is valid in all.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Whether `now` lies after the last second of validity.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// How long it is still valid; zero when expired.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// When to renew: see [`renew_at`].
    #[must_use]
    pub fn renew_at(&self, random: u32) -> SystemTime {
        renew_at(self.not_before, self.not_after, random)
    }

    /// How long to wait before renewing; zero when it is due.
    #[must_use]
    pub fn renew_in(&self, now: SystemTime, random: u32) -> Duration {
        self.renew_at(random).duration_since(now).unwrap_or_default()
    }
}

/// When to renew a certificate: within the last [`RENEW_SPREAD_PERCENT`] of its life ahead of half life; `random`
/// (uniform over `u32`) picks the point. Never later than half life, and never before `not_before`.
#[must_use]
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, random: u32) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let spread = life * RENEW_SPREAD_PERCENT / 100;
    let early = spread.mul_f64(f64::from(random) / f64::from(u32::MAX));
    not_before + (life / 2).saturating_sub(early)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * hours
    }

    #[test]
    fn renews_at_half_life_or_a_tenth_earlier() {
        for (random, expected) in [(0, at(150)), (u32::MAX, at(140))] {
            assert_eq!(renew_at(at(100), at(200), random), expected, "random {random}");
        }
        let middle = renew_at(at(100), at(200), u32::MAX / 2);
        assert!(at(144) < middle && middle < at(146), "{middle:?}");
    }

    #[test]
    fn a_reversed_or_empty_life_is_due_at_once() {
        assert_eq!(renew_at(at(5), at(4), 7), at(5));
        assert_eq!(renew_at(at(5), at(5), 7), at(5));
    }

    #[test]
    fn expiry_counts_the_last_second_as_valid() {
        let validity = Validity {
            not_before: at(1),
            not_after: at(3),
        };
        assert!(!validity.is_expired(at(3)));
        assert!(validity.is_expired(at(3) + Duration::from_secs(1)));
        assert_eq!(validity.remaining(at(2)), HOUR);
        assert_eq!(validity.remaining(at(9)), Duration::ZERO);
        assert_eq!(validity.renew_in(at(1), 0), HOUR);
        assert_eq!(validity.renew_in(at(9), 0), Duration::ZERO);
    }
}
