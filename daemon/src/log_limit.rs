//! Warnings that a peer can cause at will, without a log that it can flood.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A token bucket over log lines. Pure: `now` is an argument.
#[derive(Clone, Debug)]
pub struct LogBudget {
    burst: u32,
    refill: Duration,
    /// Tokens left as of `filled_at`.
    tokens: u32,
    filled_at: Option<Instant>,
    suppressed: u64,
}

/// Whether to write a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write it.
    Write {
        /// How many were kept back since the last one that was written.
        suppressed: u64,
    },
    /// Keep it back.
    Suppress,
}

impl LogBudget {
    /// `burst` lines at once, then one per `refill`. A burst of zero counts as one.
    pub fn new(burst: u32, refill: Duration) -> LogBudget {
        let burst = burst.max(1);
        LogBudget {
            burst,
            refill,
            tokens: burst,
            filled_at: None,
            suppressed: 0,
        }
    }

    /// Spends a token, if there is one.
    pub fn admit(&mut self, now: Instant) -> Verdict {
        self.fill(now);
        if self.tokens == 0 {
            self.suppressed += 1;
            return Verdict::Suppress;
        }
        self.tokens -= 1;
        Verdict::Write {
            suppressed: std::mem::take(&mut self.suppressed),
        }
    }

    fn fill(&mut self, now: Instant) {
        let Some(filled_at) = self.filled_at.filter(|_| !self.refill.is_zero()) else {
            self.filled_at = Some(now);
            self.tokens = self.burst;
            return;
        };
        let earned = now.saturating_duration_since(filled_at).as_nanos() / self.refill.as_nanos();
        match u32::try_from(earned) {
            Ok(earned) if earned < self.burst - self.tokens => {
                self.tokens += earned;
                // Keep the part of the interval that has not earned a token yet.
                self.filled_at = Some(filled_at + self.refill * earned);
            }
            _ => {
                self.tokens = self.burst;
                self.filled_at = Some(now);
            }
        }
    }
}

/// A [`LogBudget`] that tasks share.
///
/// ```
/// # use tombolo_daemon::log_limit::LogLimit;
/// # let now = tokio::time::Instant::now();
/// let limit = LogLimit::default();
/// limit.write(now, |suppressed| tracing::warn!(suppressed, "peer sent a bad frame"));
/// ```
#[derive(Debug)]
pub struct LogLimit {
    budget: Mutex<LogBudget>,
}

impl LogLimit {
    /// See [`LogBudget::new`].
    pub fn new(burst: u32, refill: Duration) -> LogLimit {
        LogLimit {
            budget: Mutex::new(LogBudget::new(burst, refill)),
        }
    }

    /// Calls `line` if the budget allows, with how many were kept back before it.
    pub fn write(&self, now: Instant, line: impl FnOnce(u64)) {
        // The lock is gone before the line is written.
        let verdict = self.budget.lock().admit(now);
        if let Verdict::Write { suppressed } = verdict {
            line(suppressed);
        }
    }
}

impl Default for LogLimit {
    /// Five lines show a pattern; one per ten seconds after that shows that it goes on.
    fn default() -> LogLimit {
        LogLimit::new(5, Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_per_interval() {
        const WRITE: Verdict = Verdict::Write { suppressed: 0 };
        let start = Instant::now();
        let mut budget = LogBudget::new(2, Duration::from_secs(10));
        let table = [
            (0, WRITE),
            (0, WRITE),
            (0, Verdict::Suppress),
            (9, Verdict::Suppress),
            (10, Verdict::Write { suppressed: 2 }),
            (15, Verdict::Suppress),
            (20, Verdict::Write { suppressed: 1 }),
            // A long silence earns a full burst and no more.
            (500, WRITE),
            (500, WRITE),
            (500, Verdict::Suppress),
            // Time that runs backwards earns nothing.
            (499, Verdict::Suppress),
        ];
        for (second, expected) in table {
            assert_eq!(
                budget.admit(start + Duration::from_secs(second)),
                expected,
                "at {second} s"
            );
        }
    }

    #[test]
    fn the_shared_limit_calls_only_what_it_admits() {
        let now = Instant::now();
        let limit = LogLimit::new(1, Duration::from_secs(1));
        let mut lines = Vec::new();
        for second in [0, 0, 0, 1] {
            limit.write(now + Duration::from_secs(second), |suppressed| {
                lines.push(suppressed)
            });
        }
        assert_eq!(lines, [0, 2]);
    }
}
