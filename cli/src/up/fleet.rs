//! All processes of a local clusterset, and the rules for their death.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::control::ProcessInfo;
use super::process::{Process, Spec};
use super::ready::is_ready;

/// A process that died is started again after this long, doubling up to the maximum while it keeps dying.
const RESTART_BASE: Duration = Duration::from_millis(250);
/// See [`RESTART_BASE`].
const RESTART_MAX: Duration = Duration::from_secs(10);
/// A process that ran this long before it died begins with [`RESTART_BASE`] again.
const RESTART_FORGIVEN: Duration = Duration::from_secs(30);
/// How often readiness and deaths are looked at.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// The roles in the order in which they stop: traffic first, state last.
const STOP_ORDER: [&str; 6] = ["sidecar", "dns", "gateway", "backends", "agent", "broker"];

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few dozen of them, and nearly all run"
)]
enum State {
    Running {
        process: Process,
        since: Instant,
        delay: Duration,
    },
    /// Starts again at `at`.
    Waiting { at: Instant, delay: Duration },
}

/// Keyed by (cluster, role).
type Key = (String, String);

#[derive(Debug)]
pub(crate) struct Fleet {
    logs: PathBuf,
    specs: BTreeMap<Key, Spec>,
    states: BTreeMap<Key, State>,
}

impl Fleet {
    pub(crate) fn new(logs: PathBuf) -> Self {
        Self {
            logs,
            specs: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    /// Starts a process.
    pub(crate) fn start(&mut self, spec: Spec) -> Result<()> {
        let key = (spec.cluster.clone(), spec.role.clone());
        let process = Process::start(spec.clone(), &self.logs)?;
        self.specs.insert(key.clone(), spec);
        self.states.insert(
            key,
            State::Running {
                process,
                since: Instant::now(),
                delay: RESTART_BASE,
            },
        );
        Ok(())
    }

    /// Waits until everyone with an admin address is ready, or says who is not and why.
    pub(crate) async fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        loop {
            self.bail_on_death()?;
            let asked: Vec<(String, std::net::SocketAddr)> = self
                .specs
                .values()
                .filter_map(|spec| Some((spec.name(), spec.admin?)))
                .collect();
            let answers = join_all(asked.iter().map(|(_, admin)| is_ready(*admin))).await;
            let waiting: Vec<String> = asked
                .iter()
                .zip(answers)
                .filter_map(|((name, _), answer)| answer.err().map(|reason| format!("  {name}: {reason}")))
                .collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                bail!(
                    "not ready after {} s:\n{}\nlogs: {}",
                    deadline.as_secs(),
                    waiting.join("\n"),
                    self.logs.display()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// During the start a death is final: the message holds the end of its log.
    pub(crate) fn bail_on_death(&mut self) -> Result<()> {
        for state in self.states.values_mut() {
            if let State::Running { process, .. } = state
                && let Some(status) = process.ended()
            {
                bail!(
                    "the {} ended ({status}):\n{}",
                    process.spec.name(),
                    process.log_tail()
                );
            }
        }
        Ok(())
    }

    /// Notices deaths and starts again what is due. Call it every [`POLL`].
    pub(crate) fn tend(&mut self, now: Instant) {
        for (key, state) in &mut self.states {
            match state {
                State::Running {
                    process,
                    since,
                    delay,
                } => {
                    if let Some(status) = process.ended() {
                        let delay = if now - *since >= RESTART_FORGIVEN {
                            RESTART_BASE
                        } else {
                            *delay
                        };
                        tracing::warn!(process = process.spec.name(), %status, again_in_ms = delay.as_millis(), "a process died");
                        *state = State::Waiting {
                            at: now + delay,
                            delay,
                        };
                    }
                }
                State::Waiting { at, delay } if *at <= now => {
                    let next = (*delay * 2).min(RESTART_MAX);
                    match Process::start(self.specs[key].clone(), &self.logs) {
                        Ok(process) => {
                            *state = State::Running {
                                process,
                                since: now,
                                delay: next,
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a process does not start");
                            *state = State::Waiting {
                                at: now + next,
                                delay: next,
                            };
                        }
                    }
                }
                State::Waiting { .. } => {}
            }
        }
    }

    /// Kills with SIGKILL, all at once, and holds them down for `hold`; those that are down already are held too. None when
    /// there is no such process.
    pub(crate) async fn kill(
        &mut self,
        cluster: &str,
        role: Option<&str>,
        hold: Duration,
    ) -> Option<Vec<ProcessInfo>> {
        let met = |key: &Key| key.0 == cluster && role.is_none_or(|role| role == key.1);
        if !self.specs.keys().any(met) {
            return None;
        }
        let mut killed = Vec::new();
        let mut ending = Vec::new();
        for (key, state) in self.states.iter_mut().filter(|(key, _)| met(key)) {
            if let State::Running { process, .. } = state {
                killed.push(info(key, process.pid().unwrap_or(0)));
                process.signal(Signal::SIGKILL);
            }
            let held = State::Waiting {
                at: Instant::now() + hold,
                delay: RESTART_BASE,
            };
            if let State::Running { process, .. } = std::mem::replace(state, held) {
                ending.push(process);
            }
        }
        join_all(ending.iter_mut().map(Process::kill)).await;
        Some(killed)
    }

    /// Stops everything: role by role, each role in all clusters at once.
    pub(crate) async fn stop(&mut self) {
        for role in STOP_ORDER {
            let of_role = self
                .states
                .iter_mut()
                .filter(|(key, _)| key.1 == role)
                .filter_map(|(_, state)| match state {
                    State::Running { process, .. } => Some(process.stop()),
                    State::Waiting { .. } => None,
                });
            join_all(of_role).await;
            self.states.retain(|key, _| key.1 != role);
        }
    }

    pub(crate) fn processes(&self) -> Vec<ProcessInfo> {
        let pid = |state: &State| match state {
            State::Running { process, .. } => process.pid().unwrap_or(0),
            State::Waiting { .. } => 0,
        };
        self.states
            .iter()
            .map(|(key, state)| info(key, pid(state)))
            .collect()
    }
}

fn info(key: &Key, pid: u32) -> ProcessInfo {
    ProcessInfo {
        cluster: key.0.clone(),
        role: key.1.clone(),
        pid,
    }
}
