use super::*;

/// One group under the default policy, driven by a script of (milliseconds, endpoint, outcome).
struct Script {
    outliers: Outliers<u8>,
    start: Instant,
}

impl Script {
    fn new(members: u8) -> Self {
        let mut outliers = Outliers::new(OutlierPolicy::default());
        outliers.set_members(0..members);
        Self {
            outliers,
            start: Instant::now(),
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Fails `key` `times` times at `ms`; whether it is out then.
    fn fail(&mut self, ms: u64, key: u8, times: u32) -> bool {
        let now = self.at(ms);
        for _ in 0..times {
            self.outliers.on_failure(&key, now);
        }
        self.outliers.ejected().any(|out| *out == key)
    }

    fn succeed(&mut self, ms: u64, key: u8) {
        let now = self.at(ms);
        self.outliers.on_success(&key, now);
    }

    fn poll(&mut self, ms: u64) -> usize {
        let now = self.at(ms);
        self.outliers.poll(now).len()
    }
}

#[test]
fn failures_in_a_row_eject_and_a_success_between_does_not() {
    let mut script = Script::new(4);
    assert!(!script.fail(0, 0, 2));
    script.succeed(1, 0);
    assert!(!script.fail(2, 0, 2));
    assert!(script.fail(3, 0, 1));
    assert_eq!(script.outliers.deadline(), Some(script.at(5_003)));
    assert_eq!(script.poll(5_002), 0);
    assert_eq!(script.poll(5_003), 1);
    assert_eq!(script.outliers.deadline(), None);
}

#[test]
fn ejection_doubles_on_probation_and_is_forgiven_in_time() {
    let mut script = Script::new(4);
    let mut now = 0;
    script.fail(now, 0, 3);
    for expected in [5_000, 10_000, 20_000, 40_000, 80_000, 80_000] {
        let until = script.outliers.deadline();
        assert_eq!(until, Some(script.at(now + expected)), "after {now} ms");
        now += expected;
        assert_eq!(script.poll(now), 1);
        assert!(script.fail(now, 0, 1), "one failure on probation ejects");
    }
    now += 80_000;
    script.poll(now);
    script.succeed(now, 0);
    now += 80_000;
    assert!(!script.fail(now, 0, 2), "a success ends probation");
    assert!(script.fail(now, 0, 1));
    assert_eq!(
        script.outliers.deadline(),
        Some(script.at(now + 5_000)),
        "the past is forgiven"
    );
}

#[test]
fn a_low_success_rate_ejects_once_there_are_enough_outcomes() {
    let mut script = Script::new(4);
    // Fail, fail, succeed: never three in a row, 33 % good.
    for n in 0..6u64 {
        assert!(!script.fail(n * 100, 0, 2), "after {n} rounds");
        script.succeed(n * 100, 0);
    }
    assert!(script.fail(700, 0, 2), "20 outcomes, 6 good");
    // The same spread over more than the window never fills it.
    let mut script = Script::new(4);
    for n in 0..40u64 {
        assert!(!script.fail(n * 2_000, 0, 2), "after {n} rounds");
        script.succeed(n * 2_000, 0);
    }
}

#[test]
fn never_more_than_the_part_allowed_and_never_the_last() {
    for (members, allowed) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)] {
        let mut script = Script::new(members);
        for key in 0..members {
            script.fail(0, key, 10);
        }
        assert_eq!(script.outliers.ejected().count(), allowed, "of {members}");
    }
}

#[test]
fn a_member_that_leaves_is_forgotten_and_strangers_do_not_count() {
    let mut script = Script::new(4);
    assert!(script.fail(0, 0, 3));
    script.outliers.set_members(1..4);
    assert_eq!(script.outliers.ejected().count(), 0);
    assert!(!script.fail(1, 0, 10), "no member");
    script.outliers.set_members(0..4);
    assert!(!script.fail(2, 0, 2), "its history is gone");
}

#[test]
fn memory_is_bounded() {
    let mut outliers = Outliers::new(OutlierPolicy::default());
    outliers.set_members(0..2 * MEMBERS_MAX);
    assert_eq!(outliers.members.len(), MEMBERS_MAX);
}
