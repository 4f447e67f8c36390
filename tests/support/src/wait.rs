//! Waiting on conditions, never on time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Calls `probe` until it gives a value, and returns it with the time that took.
///
/// # Panics
/// With the last refusal when `deadline` passes.
pub fn within<T, E: Debug>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, E>,
) -> (T, Duration) {
    let began = Instant::now();
    loop {
        match probe() {
            Ok(value) => return (value, began.elapsed()),
            Err(refusal) if began.elapsed() >= deadline => {
                panic!("{what}: not within {} ms: {refusal:?}", deadline.as_millis())
            }
            Err(_) => pause(),
        }
    }
}

/// [`within`] for a plain condition.
///
/// # Panics
/// When `deadline` passes first.
pub fn eventually(deadline: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    within(deadline, what, || {
        if holds() { Ok(()) } else { Err("it does not hold") }
    })
    .1
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one pause between two looks at a condition"
)]
fn pause() {
    std::thread::sleep(POLL);
}
