//! Signals reach a process of their own: this test starts itself as the child.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::env;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tombolo_daemon::seam::clock::HostClock;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_daemon::signals::{IMPATIENT_EXIT_CODE, Signals};

const ROLE: &str = "TOMBOLO_TEST_CHILD";

#[test]
fn the_first_signal_drains_and_the_second_exits() {
    if let Ok(role) = env::var(ROLE) {
        return child(role == "stubborn");
    }
    for signal in [Signal::TERM, Signal::INT] {
        let (mut obedient, mut lines) = start("obedient");
        wait_for(&mut lines, "started");
        send(&obedient, signal);
        wait_for(&mut lines, "draining");
        assert_eq!(obedient.wait().unwrap().code(), Some(0));

        let (mut stubborn, mut lines) = start("stubborn");
        wait_for(&mut lines, "started");
        send(&stubborn, signal);
        wait_for(&mut lines, "draining");
        send(&stubborn, Signal::INT);
        assert_eq!(stubborn.wait().unwrap().code(), Some(IMPATIENT_EXIT_CODE));
    }
}

/// Says where it is; a stubborn one holds on to a flow after that.
#[tokio::main(flavor = "current_thread")]
async fn child(stubborn: bool) {
    let shutdown = Shutdown::new(Duration::from_secs(600));
    let flow = shutdown.guard("flow");
    tokio::spawn(
        Signals::install()
            .unwrap()
            .run(shutdown.clone(), Arc::new(HostClock)),
    );
    println!("started");
    shutdown.drain().await;
    println!("draining");
    if !stubborn {
        drop(flow);
    }
    assert!(shutdown.drained().await.is_clean());
}

fn start(role: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let test = "the_first_signal_drains_and_the_second_exits";
    let mut child = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn wait_for(lines: &mut Lines<BufReader<ChildStdout>>, word: &str) {
    // The test harness of the child writes its own words on the same line.
    assert!(
        lines.any(|line| line.unwrap().ends_with(word)),
        "the child never said `{word}`"
    );
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}
