use super::*;
use proptest::prelude::*;

const RTT: Duration = Duration::from_millis(100);

/// A path under the lan profile whose peer answers after [`RTT`] while it is well.
struct Path {
    tracker: LinkTracker,
    start: Instant,
    /// Milliseconds since the start.
    now: u64,
    /// When answers arrive.
    answers: Vec<u64>,
    /// (milliseconds, state), every change.
    changes: Vec<(u64, LinkState)>,
}

impl Path {
    fn new() -> Self {
        let tracker = LinkTracker::new(LinkProfile::LAN);
        Self {
            tracker,
            start: Instant::now(),
            now: 0,
            answers: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    /// Runs for `ms` in steps of 10 ms, pinging as due; the peer answers pings sent while it is `well`.
    fn run(&mut self, ms: u64, well: bool) -> &mut Self {
        let end = self.now + ms;
        while self.now < end {
            self.step(10, well);
        }
        self
    }

    fn step(&mut self, ms: u64, well: bool) {
        let now = self.at();
        if self.tracker.ping_due(now) <= now {
            self.tracker.on_ping_sent(now);
            if well {
                self.answers.push(self.now + 100);
            }
        }
        let (due, later) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition(|at| *at <= self.now);
        self.answers = later;
        let due: Vec<u64> = due;
        for _ in due {
            self.tracker.on_pong(RTT, now);
        }
        self.poll();
        self.now += ms;
    }

    fn close(&mut self) -> &mut Self {
        self.answers.clear();
        self.tracker.on_closed();
        self.poll();
        self
    }

    fn poll(&mut self) {
        if let Some(state) = self.tracker.poll(self.at()) {
            self.changes.push((self.now, state));
        }
    }

    fn states(&self) -> Vec<LinkState> {
        self.changes.iter().map(|(_, state)| *state).collect()
    }

    fn check(&self, expected: &[LinkState]) {
        assert_eq!(self.states(), expected, "{:?}", self.changes);
    }
}

use LinkState::{Down, Suspect, Up};

#[test]
fn a_path_with_100_ms_rtt_comes_up_and_stays_up() {
    let mut path = Path::new();
    path.run(60_000, true).check(&[Up]);
    assert_eq!(path.changes, [(100, Up)], "at the first answer");
    assert_eq!(
        path.tracker.link(),
        Link {
            state: Up,
            rtt: Some(RTT),
            both_lost_for: None
        }
    );
}

#[test]
fn silence_makes_it_suspect_then_down_within_the_promised_times() {
    let mut path = Path::new();
    path.run(1_000, true)
        .run(2_000, false)
        .check(&[Up, Suspect, Down]);
    let [_, (suspect, _), (down, _)] = path.changes[..] else {
        panic!("three changes")
    };
    assert!((1_300..=1_400).contains(&suspect), "suspect at {suspect} ms");
    assert!((2_000..=2_100).contains(&down), "down at {down} ms");
}

#[test]
fn the_round_trip_is_the_least_of_the_last_windows() {
    let mut tracker = LinkTracker::new(LinkProfile::LAN);
    let began = Instant::now();
    let mut rtt_after = |seconds: u64, rtt: u64| {
        tracker.on_pong(Duration::from_millis(rtt), began + Duration::from_secs(seconds));
        tracker.link().rtt.map(|rtt| rtt.as_millis())
    };
    assert_eq!(rtt_after(0, 20), Some(20));
    assert_eq!(rtt_after(1, 80), Some(20), "noise only adds");
    assert_eq!(rtt_after(11, 50), Some(20), "the window before still counts");
    assert_eq!(
        rtt_after(22, 60),
        Some(50),
        "a longer path is known after two windows"
    );
}

#[test]
fn a_single_lost_answer_changes_nothing() {
    let mut path = Path::new();
    path.run(1_000, true)
        .run(100, false)
        .run(5_000, true)
        .check(&[Up]);
}

#[test]
fn a_refused_dial_or_a_close_is_down_at_once() {
    let mut path = Path::new();
    path.close().check(&[Down]);
    let mut path = Path::new();
    path.run(1_000, true).close().check(&[Up, Down]);
}

#[test]
fn it_comes_back_after_some_answers_in_a_row() {
    let mut path = Path::new();
    path.run(1_000, true)
        .run(600, false)
        .run(1_000, true)
        .check(&[Up, Suspect, Up]);
    let back = path.changes[2].0;
    assert!(
        (1_900..=2_000).contains(&back),
        "three answers after 1,600 + RTT: {back} ms"
    );

    let mut path = Path::new();
    path.run(1_000, true)
        .close()
        .run(2_000, true)
        .check(&[Up, Down, Up]);
    assert_eq!(path.tracker.link().rtt, Some(RTT), "measured anew");
}

#[test]
fn a_flapping_path_is_kept_from_up_until_it_was_quiet() {
    let mut path = Path::new();
    for _ in 0..5 {
        path.run(500, true).close();
    }
    // Three flaps in quick succession: from then on an answering path is Suspect.
    path.run(2_000, true);
    path.check(&[
        Up, Down, Up, Down, Up, Down, Suspect, Down, Suspect, Down, Suspect,
    ]);
    assert!(path.tracker.is_damped());
    let quiet = path.now;
    path.run(30_000, true);
    assert_eq!(path.tracker.state(), Up);
    let released = path.changes.last().expect("changes").0;
    assert!(
        (quiet..quiet + 15_000).contains(&released),
        "released at {released} ms, quiet since {quiet} ms"
    );
}

#[test]
fn damping_ends_by_its_bound_after_any_number_of_flaps() {
    let mut damping = Damping::default();
    let start = Instant::now();
    for n in 0..1_000 {
        damping.flap(start + Duration::from_millis(n));
    }
    let last = start + Duration::from_millis(999);
    let released = damping.released_at().expect("suppressed");
    assert!(
        released <= last + SUPPRESSED_MAX + Duration::from_millis(2),
        "{:?}",
        released - last
    );
    assert!(damping.suppresses(released - Duration::from_millis(5)));
    assert!(!damping.suppresses(released));
}

#[test]
fn the_deadline_is_when_the_next_change_happens() {
    let mut path = Path::new();
    assert_eq!(path.tracker.deadline(), None);
    path.run(1_000, true).run(110, false);
    let suspect = path.tracker.deadline().expect("a ping is unanswered");
    assert_eq!(path.tracker.poll(suspect - Duration::from_millis(1)), None);
    assert_eq!(path.tracker.poll(suspect), Some(Suspect));
    let down = path.tracker.deadline().expect("still unanswered");
    assert_eq!(down, suspect + Duration::from_millis(700));
    assert_eq!(path.tracker.poll(down - Duration::from_millis(1)), None);
    assert_eq!(path.tracker.poll(down), Some(Down));
    assert_eq!(path.tracker.deadline(), None);
}

#[test]
fn memory_is_bounded() {
    let mut path = Path::new();
    path.run(100_000, false);
    assert_eq!(path.tracker.outstanding.len(), OUTSTANDING_MAX);
    path.run(1_000, true);
    assert_eq!(path.tracker.state(), Up, "an answer clears what it overtook");
}

#[derive(Debug, Clone)]
enum Event {
    Run(u64, bool),
    Close,
}

fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (50..3_000u64, any::<bool>()).prop_map(|(ms, well)| Event::Run(ms, well)),
        1 => Just(Event::Close),
    ];
    prop::collection::vec(event, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each loss of Up costs 1,000 of a penalty that is below 2,500 whenever the path is Up and decays by at most
    /// 3,500 × ln 2 / 8 s: losses within any time are bounded by it.
    #[test]
    fn a_path_never_oscillates_faster_than_its_damping(events in any_events()) {
        let mut path = Path::new();
        for event in events {
            match event {
                Event::Run(ms, well) => drop(path.run(ms, well).states()),
                Event::Close => drop(path.close().states()),
            }
        }
        let losses: Vec<u64> =
            path.changes.windows(2).filter(|pair| pair[0].1 == Up).map(|pair| pair[1].0).collect();
        for (from, begin) in losses.iter().enumerate() {
            for (to, end) in losses.iter().enumerate().skip(from) {
                let flaps = (to - from) as f64;
                let seconds = (end - begin) as f64 / 1000.0;
                prop_assert!(flaps * 1000.0 <= 3_500.0 + 304.0 * seconds, "{} flaps in {} s: {:?}", flaps, seconds, losses);
            }
        }
        path.run(SUPPRESSED_MAX.as_millis() as u64 + 1_000, true);
        prop_assert_eq!(path.tracker.state(), Up, "a quiet path is up again by the bound");
    }

    #[test]
    fn changes_are_told_once_and_at_the_deadline_at_the_latest(events in any_events()) {
        let mut path = Path::new();
        for event in events {
            match event {
                Event::Run(ms, well) => {
                    path.run(ms, well);
                }
                Event::Close => {
                    path.close();
                }
            }
            let mut idle = path.tracker.clone();
            let now = path.at();
            idle.poll(now);
            prop_assert!(idle.deadline().is_none_or(|deadline| deadline > now), "a shell would spin");
            // Until the deadline (a release is told a millisecond late) nothing changes by time alone.
            let quiet = idle.deadline().unwrap_or(now + Duration::from_secs(100)) - Duration::from_millis(2);
            prop_assert_eq!(idle.poll(quiet.max(now)), None);
        }
        prop_assert!(path.changes.windows(2).all(|pair| pair[0].1 != pair[1].1), "{:?}", path.changes);
    }
}
