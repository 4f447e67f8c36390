//! Time, as a seam.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

/// What time it is. Timers stay with `tokio::time`, which the simulation already steers.
pub trait Clock: Send + Sync + Debug {
    /// Monotonic time, for deadlines and ages.
    fn now(&self) -> Instant;

    /// Wall time, for what people read and what certificates say. It may jump.
    fn wall(&self) -> SystemTime;
}

/// The host's clocks. `now` follows tokio's clock, so that a test that pauses time pauses this one.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

#[expect(clippy::disallowed_methods, reason = "this is where the time comes from")]
impl Clock for HostClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock {
    time: Mutex<(Instant, SystemTime)>,
}

impl ManualClock {
    /// Starts at `now` and `wall`.
    pub fn new(now: Instant, wall: SystemTime) -> ManualClock {
        ManualClock {
            time: Mutex::new((now, wall)),
        }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut time = self.time.lock();
        time.0 += by;
        time.1 += by;
    }

    /// Lets the wall clock jump, forward or back; monotonic time stays.
    pub fn set_wall(&self, wall: SystemTime) {
        self.time.lock().1 = wall;
    }
}

impl Default for ManualClock {
    /// An arbitrary monotonic instant and the Unix epoch.
    #[expect(clippy::disallowed_methods, reason = "the only way to have an instant at all")]
    fn default() -> ManualClock {
        ManualClock::new(Instant::now(), SystemTime::UNIX_EPOCH)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.time.lock().0
    }

    fn wall(&self) -> SystemTime {
        self.time.lock().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_jumps_leave_monotonic_time_alone() {
        let clock = ManualClock::default();
        let start = clock.now();
        clock.advance(Duration::from_secs(5));
        clock.set_wall(SystemTime::UNIX_EPOCH);
        assert_eq!(clock.now() - start, Duration::from_secs(5));
        assert_eq!(clock.wall(), SystemTime::UNIX_EPOCH);
    }
}
