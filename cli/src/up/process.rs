//! The processes of a local clusterset: start, watch, stop, always by their id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::site::DATA_DIR_VARIABLE;

/// Tells a role that it ends with its parent, so that a killed `up` leaves nothing running.
pub(crate) const PARENT_VARIABLE: &str = "TOMBOLO_PARENT_PID";

/// How long a process may take to end after SIGTERM before it is killed: above the roles' own drain of a machine at rest.
const STOP_GRACE: Duration = Duration::from_secs(8);

/// Lines of a log that a failure message shows.
const LOG_TAIL_LINES: usize = 4;

/// What a process does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// `broker`, `agent`, `gateway`, `dns`, `sidecar` or `backends`.
    pub(crate) role: String,
    /// Its cluster; for brokers `broker-<n>`.
    pub(crate) cluster: String,
    /// Arguments of this binary.
    pub(crate) args: Vec<String>,
    /// The cluster's data directory, where the role has one.
    pub(crate) data_dir: Option<PathBuf>,
    /// `http://…/readyz` is asked here, where the role has an admin address.
    pub(crate) admin: Option<std::net::SocketAddr>,
}

impl Spec {
    /// `role/cluster`, for people.
    pub(crate) fn name(&self) -> String {
        format!("{} of {}", self.role, self.cluster)
    }

    fn log_file(&self, logs: &Path) -> PathBuf {
        logs.join(format!("{}-{}.log", self.cluster, self.role))
    }
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) spec: Spec,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it. Its standard error goes to a file in `logs`.
    pub(crate) fn start(spec: Spec, logs: &Path) -> Result<Self> {
        let log = spec.log_file(logs);
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write the log {}", log.display()))?;
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(&binary);
        command
            .args(&spec.args)
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A Ctrl-C at the terminal goes to `up` alone, which stops its processes in order.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(data_dir) = &spec.data_dir {
            command.env(DATA_DIR_VARIABLE, data_dir);
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start the {}", spec.name()))?;
        Ok(Self { spec, child, log })
    }

    /// Its process id; None once it ended.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The last lines of its log, for a failure message.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(LOG_TAIL_LINES).collect();
        lines
            .into_iter()
            .rev()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
            + &format!("    (whole log: {})", self.log.display())
    }

    /// Asks it to end, waits, and kills it if it does not.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        if timeout(STOP_GRACE, self.child.wait()).await.is_err() {
            tracing::warn!(process = self.spec.name(), "did not end in time; killing it");
            self.kill().await;
        }
    }

    /// Kills it at once, as a crash would.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Err(error) = self.child.wait().await {
            tracing::warn!(process = self.spec.name(), %error, "cannot wait for it");
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            tracing::debug!(process = self.spec.name(), %error, "it is gone already");
        }
    }
}
