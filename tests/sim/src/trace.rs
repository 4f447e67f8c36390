//! The trace of one run: every decision as a line, folded into a digest. Two runs of one seed have the same digest.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Lines kept for a failure's report: a few simulated seconds of what led to it.
const KEPT: usize = 120;

/// FNV-1a, 64 bits: the same in every build.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// What was decided, in its order.
#[derive(Debug)]
pub struct Trace {
    digest: u64,
    lines: u64,
    tail: VecDeque<String>,
}

impl Trace {
    /// Nothing decided yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            digest: OFFSET,
            lines: 0,
            tail: VecDeque::with_capacity(KEPT),
        }
    }

    /// Adds a decision made at `now`.
    pub fn note(&mut self, now: Duration, decision: fmt::Arguments<'_>) {
        let line = format!("{:>10.6} {decision}", now.as_secs_f64());
        self.digest = fold(self.digest, line.as_bytes());
        self.lines += 1;
        if self.tail.len() == KEPT {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// Digest over all lines so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// How many decisions there were.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The last lines, oldest first.
    #[must_use]
    pub fn tail(&self) -> String {
        self.tail.iter().map(|line| format!("    {line}\n")).collect()
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

/// `digest` continued over `bytes`.
#[must_use]
pub fn fold(digest: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(digest, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

/// The digest of `bytes` alone.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> u64 {
    fold(OFFSET, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_fnv_1a() {
        assert_eq!(digest_of(b""), OFFSET);
        assert_eq!(
            digest_of(b"foobar"),
            0x8594_4171_f739_67e8,
            "test vector of its authors"
        );
    }

    #[test]
    fn order_and_time_count() {
        let run = |decisions: &[(u64, &str)]| {
            let mut trace = Trace::new();
            for (at, text) in decisions {
                trace.note(Duration::from_millis(*at), format_args!("{text}"));
            }
            trace.digest()
        };
        assert_eq!(run(&[(1, "a"), (2, "b")]), run(&[(1, "a"), (2, "b")]));
        assert_ne!(run(&[(1, "a"), (2, "b")]), run(&[(1, "b"), (2, "a")]));
        assert_ne!(run(&[(1, "a")]), run(&[(2, "a")]));
    }
}
