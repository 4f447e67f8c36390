use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::seam::entropy::SeededEntropy;
use crate::shutdown::RESET_TIME;

const GRACE: Duration = Duration::from_secs(30);

fn supervisor() -> Supervisor {
    let seams = Seams {
        entropy: Arc::new(SeededEntropy::new(1)),
        ..Seams::host()
    };
    Supervisor::new(Shutdown::new(GRACE), &seams)
}

async fn until_drain(shutdown: Shutdown) -> TaskResult {
    shutdown.drain().await;
    Ok(())
}

/// Runs one essential task beside one that waits for the drain, and returns the error of the process.
async fn death(task: impl Future<Output = TaskResult> + Send + 'static) -> String {
    let mut supervisor = supervisor();
    let shutdown = supervisor.shutdown().clone();
    supervisor.essential("waits", until_drain(shutdown.clone()));
    supervisor.essential("links", task);
    let error = supervisor.run_until_shutdown().await.unwrap_err();
    assert!(
        shutdown.is_draining(),
        "the others are drained before the process ends"
    );
    error.to_string()
}

#[tokio::test(start_paused = true)]
async fn the_death_of_an_essential_task_ends_the_process_by_name() {
    assert_eq!(
        death(async { Err("no route".into()) }).await,
        "essential task `links` failed: no route"
    );
    let panicked = death(async { panic!("index {}", 7) }).await;
    assert!(
        panicked.starts_with("essential task `links` panicked: index 7"),
        "{panicked}"
    );
    let ended = death(async { Ok(()) }).await;
    assert!(
        ended.starts_with("essential task `links` ended although nothing asked it to"),
        "{ended}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_companion_is_essential_too() {
    let mut supervisor = supervisor();
    supervisor.companion("admin", async { Err("no socket".into()) });
    let error = supervisor.run_until_shutdown().await.unwrap_err();
    assert_eq!(error.to_string(), "essential task `admin` failed: no socket");
}

#[tokio::test(start_paused = true)]
async fn a_companion_serves_through_the_drain_and_is_not_waited_for() {
    let mut supervisor = supervisor();
    let shutdown = supervisor.shutdown().clone();
    let (ask, mut asked) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<()>>(1);
    supervisor.companion("admin", async move {
        while let Some(reply) = asked.recv().await {
            let _ = reply.send(());
        }
        Ok(())
    });
    let drain = shutdown.clone();
    supervisor.essential("asks", async move {
        drain.drain().await;
        let (reply, answer) = tokio::sync::oneshot::channel();
        ask.send(reply).await?;
        answer.await?;
        std::future::pending().await
    });
    let start = Instant::now();
    shutdown.begin(start);
    let drained = supervisor.run_until_shutdown().await.unwrap();
    assert_eq!(
        drained.to_string(),
        "1 × asks",
        "of the two that never end, one was waited for"
    );
    assert_eq!(start.elapsed(), GRACE + RESET_TIME, "and was given its time");
}

#[tokio::test(start_paused = true)]
async fn a_task_is_restarted_whatever_it_died_of() {
    let mut supervisor = supervisor();
    let shutdown = supervisor.shutdown().clone();
    let runs = Arc::new(AtomicUsize::new(0));
    let (counted, drain) = (runs.clone(), shutdown.clone());
    supervisor.restart("watch", Backoff::default(), move || {
        let (run, drain) = (counted.fetch_add(1, Ordering::Relaxed), drain.clone());
        assert_ne!(run, 2, "a panic while it starts counts as well");
        async move {
            match run {
                0 => Err("disconnected".into()),
                1 => panic!("bad frame"),
                3 => Ok(()),
                _ => {
                    drain.begin(Instant::now());
                    until_drain(drain).await
                }
            }
        }
    });
    assert!(supervisor.run_until_shutdown().await.unwrap().is_clean());
    assert_eq!(runs.load(Ordering::Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_delay() {
    let mut supervisor = supervisor();
    let shutdown = supervisor.shutdown().clone();
    let start = Instant::now();
    let hour = Duration::from_secs(3600);
    supervisor.restart("watch", Backoff::decorrelated(hour, hour), move || {
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            shutdown.begin(Instant::now());
        });
        async { Err("disconnected".into()) }
    });
    assert!(supervisor.run_until_shutdown().await.unwrap().is_clean());
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_tasks_and_guards_up_to_the_deadline() {
    let mut supervisor = supervisor();
    let shutdown = supervisor.shutdown().clone();
    supervisor.essential("waits", until_drain(shutdown.clone()));
    let flow = shutdown.guard("flow");
    let start = Instant::now();
    shutdown.begin(start);
    assert_eq!(
        supervisor.run_until_shutdown().await.unwrap().to_string(),
        "1 × flow"
    );
    assert_eq!(start.elapsed(), GRACE + RESET_TIME);
    drop(flow);
}

#[tokio::test(start_paused = true)]
async fn a_long_run_counts_as_a_success() {
    const QUICK_RUNS: usize = 10;
    const LONG_RUNS: usize = 5;
    let (base, max) = (Duration::from_secs(1), Duration::from_secs(60));
    let mut supervisor = supervisor();
    let shutdown = supervisor.shutdown().clone();
    let mut run = 0;
    let mut ended_at = Instant::now();
    let delays = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = delays.clone();
    supervisor.restart("watch", Backoff::full(base, max), move || {
        delays.lock().push(ended_at.elapsed());
        run += 1;
        let lasts = if run <= QUICK_RUNS {
            Duration::ZERO
        } else {
            max * 2
        };
        ended_at = Instant::now() + lasts;
        if run > QUICK_RUNS + LONG_RUNS {
            shutdown.begin(Instant::now());
        }
        async move {
            tokio::time::sleep(lasts).await;
            Err("disconnected".into())
        }
    });
    let _ = supervisor.run_until_shutdown().await.unwrap();
    let seen = seen.lock();
    assert!(
        seen[..=QUICK_RUNS].iter().any(|delay| *delay > base),
        "delays grew: {seen:?}"
    );
    let after_long_runs = &seen[QUICK_RUNS + 1..];
    assert_eq!(after_long_runs.len(), LONG_RUNS);
    // A timer of tokio is late by up to a millisecond.
    let limit = base + Duration::from_millis(1);
    assert!(
        after_long_runs.iter().all(|delay| *delay <= limit),
        "delays started over: {seen:?}"
    );
}
