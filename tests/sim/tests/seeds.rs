//! Runs seeds. `TOMBOLO_SIM_SEEDS=n` runs seeds 0 to n - 1 (50 by default), `TOMBOLO_SIM_SEED=s` one seed with its trace.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};

use tombolo_sim::{Mutant, Report, run};

/// Seeds of a run that nobody chose: a minute on two cores of a laptop, in the dev profile.
const SEEDS: u64 = 50;

/// A mutant that survives this many seeds is not caught.
const MUTANT_SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// The least seed below `seeds` whose run ends in a violation. Seeds run on all cores, each on one.
fn first_failure(seeds: u64, mutant: Option<Mutant>) -> Option<(u64, Report)> {
    let (next, bound) = (AtomicU64::new(0), AtomicU64::new(seeds));
    let work = || {
        let mut found: Option<(u64, Report)> = None;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= bound.load(Ordering::Relaxed) {
                return found;
            }
            let report = run(seed, mutant);
            if report.violation.is_some() {
                bound.fetch_min(seed, Ordering::Relaxed);
                if found.as_ref().is_none_or(|(known, _)| seed < *known) {
                    found = Some((seed, report));
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().unwrap())
            .min_by_key(|(seed, _)| *seed)
    })
}

fn explain(seed: u64, report: &Report) -> String {
    let violation = report.violation.as_ref().unwrap();
    format!(
        "seed {seed}, {:.3} s: {}\n  {}\n  repeat: TOMBOLO_SIM_SEED={seed} cargo test -p tombolo-sim --test seeds every_seed_holds\n{}",
        violation.at.as_secs_f64(),
        violation.invariant,
        violation.text,
        violation.tail,
    )
}

#[test]
fn every_seed_holds() {
    if let Some(seed) = number("TOMBOLO_SIM_SEED") {
        let report = run(seed, None);
        assert!(report.violation.is_none(), "{}", explain(seed, &report));
        return;
    }
    let seeds = number("TOMBOLO_SIM_SEEDS").unwrap_or(SEEDS);
    if let Some((seed, report)) = first_failure(seeds, None) {
        panic!("{}", explain(seed, &report));
    }
}

#[test]
fn a_seed_runs_the_same_twice() {
    for seed in [1, 7] {
        let (first, second) = (run(seed, None), run(seed, None));
        assert!(
            first.decisions > 200 && first.committed > 50,
            "{first:?} decided too little to prove anything"
        );
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(1, None).digest, run(7, None).digest);
}

#[test]
fn every_mutant_is_caught() {
    for mutant in Mutant::ALL {
        let caught = first_failure(MUTANT_SEEDS, Some(mutant));
        let Some((seed, report)) = caught else {
            panic!("{mutant:?} survives {MUTANT_SEEDS} seeds")
        };
        println!("{mutant:?}: seed {seed}, {}", report.violation.unwrap().invariant);
    }
}
