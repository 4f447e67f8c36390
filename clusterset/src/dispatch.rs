//! When a new flow moves on: its tries, one after another and at last side by side.
//!
//! Until one try says *connected*, no byte of the client has reached a backend, so that the flow may move (DESIGN §7); after
//! that it never does. Gateway and sidecar differ in what a try is, and share when the next one begins.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A try that has not answered for this long gets company: a connect across a region takes less, and a client waits this
/// long without noticing.
pub const HEDGE_DELAY: Duration = Duration::from_millis(150);

/// A try over a path of known RTT gets this many of them, should that be longer: tunnel, backend, and some to spare.
const HEDGE_ROUND_TRIPS: u32 = 3;

/// Tries that may be pending at once: backends see at most this many connects for one flow.
pub const PENDING_MAX: usize = 3;

/// A flow that nobody has connected by then has failed: longer than any detection, shorter than a client's patience.
pub const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How long a try may be silent before the next begins beside it.
#[must_use]
pub fn hedge_after(rtt: Option<Duration>) -> Duration {
    rtt.map_or(HEDGE_DELAY, |rtt| HEDGE_DELAY.max(rtt * HEDGE_ROUND_TRIPS))
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Begin this try, beside those that are pending.
    Try(usize),
    /// Nothing until then, or until a try answers.
    Wait(Instant),
    /// No try is left, or the time is over.
    GiveUp,
}

/// The tries of one flow, numbered in their order.
///
/// Call order: [`Self::poll`] until it says `Wait`; `on_*` when something happened, then [`Self::poll`] again. The first try
/// that connects ends it: the caller drops the others.
#[derive(Debug, Clone)]
pub struct Dispatch {
    tries: usize,
    next: usize,
    /// When each pending try gets company.
    pending: BTreeMap<usize, Instant>,
    deadline: Instant,
    is_final: bool,
}

impl Dispatch {
    /// A flow with that many tries, begun at `now`.
    #[must_use]
    pub fn new(tries: usize, now: Instant) -> Self {
        Self {
            tries,
            next: 0,
            pending: BTreeMap::new(),
            deadline: now + OPEN_LIMIT,
            is_final: false,
        }
    }

    /// The next step.
    pub fn poll(&mut self, now: Instant) -> Step {
        let left = self.next < self.tries && !self.is_final;
        if now >= self.deadline || (self.pending.is_empty() && !left) {
            return Step::GiveUp;
        }
        let may_add = left && self.pending.len() < PENDING_MAX;
        // The youngest speaks: an older one that is late had its successor already.
        let due = self.pending.values().max().copied();
        match due {
            None => self.start(),
            Some(due) if may_add && due <= now => self.start(),
            Some(due) if may_add => Step::Wait(due.min(self.deadline)),
            Some(_) => Step::Wait(self.deadline),
        }
    }

    /// Try `number` began at `now`; its path has this RTT.
    pub fn on_begun(&mut self, number: usize, rtt: Option<Duration>, now: Instant) {
        self.pending.insert(number, now + hedge_after(rtt));
    }

    /// The link that try `number` takes is no longer up: it gets company at once.
    pub fn on_suspect(&mut self, number: usize, now: Instant) {
        if let Some(due) = self.pending.get_mut(&number) {
            *due = now.min(*due);
        }
    }

    /// Try `number` failed. With `may_move` false no other is begun.
    pub fn on_failed(&mut self, number: usize, may_move: bool) {
        self.pending.remove(&number);
        self.is_final |= !may_move;
    }

    fn start(&mut self) -> Step {
        let number = self.next;
        self.next += 1;
        Step::Try(number)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test starts at any instant")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn silence_gets_company_and_failure_a_successor() {
        let start = Instant::now();
        let mut dispatch = Dispatch::new(4, start);
        assert_eq!(dispatch.poll(start), Step::Try(0));
        dispatch.on_begun(0, None, start);
        assert_eq!(dispatch.poll(start), Step::Wait(start + HEDGE_DELAY));
        let hedged = start + HEDGE_DELAY;
        assert_eq!(dispatch.poll(hedged), Step::Try(1));
        dispatch.on_begun(1, Some(100 * MS), hedged);
        assert_eq!(dispatch.poll(hedged), Step::Wait(hedged + 300 * MS));
        dispatch.on_suspect(1, hedged + MS);
        assert_eq!(dispatch.poll(hedged + MS), Step::Try(2));
        dispatch.on_begun(2, None, hedged + MS);
        // Three are pending: the fourth waits for one of them to fail.
        assert_eq!(dispatch.poll(hedged + 500 * MS), Step::Wait(start + OPEN_LIMIT));
        dispatch.on_failed(2, true);
        assert_eq!(dispatch.poll(hedged + 500 * MS), Step::Try(3));
        dispatch.on_begun(3, None, hedged + 500 * MS);
        for number in [0, 1, 3] {
            dispatch.on_failed(number, true);
        }
        assert_eq!(dispatch.poll(hedged + 500 * MS), Step::GiveUp);
    }

    #[test]
    fn a_final_failure_begins_no_other() {
        let start = Instant::now();
        let mut dispatch = Dispatch::new(3, start);
        assert_eq!(dispatch.poll(start), Step::Try(0));
        dispatch.on_begun(0, None, start);
        dispatch.on_failed(0, false);
        assert_eq!(dispatch.poll(start), Step::GiveUp);
        assert_eq!(Dispatch::new(0, start).poll(start), Step::GiveUp);
    }

    #[test]
    fn the_time_is_bounded() {
        let start = Instant::now();
        let mut dispatch = Dispatch::new(1, start);
        assert_eq!(dispatch.poll(start), Step::Try(0));
        dispatch.on_begun(0, None, start);
        assert_eq!(dispatch.poll(start + HEDGE_DELAY), Step::Wait(start + OPEN_LIMIT));
        assert_eq!(dispatch.poll(start + OPEN_LIMIT), Step::GiveUp);
    }
}
