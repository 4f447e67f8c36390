//! `tombolo up` and the commands against it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::wait::within;

/// `up` is ready in under 15 s on a machine at rest (README); a test machine may be busy.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Long enough for every process to drain.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("tests/support stands two folders below the root")
        .to_owned()
}

/// The binary under test.
///
/// # Panics
/// When `TOMBOLO_BIN` does not name it; `make e2e` builds it and sets that.
#[must_use]
pub fn binary() -> PathBuf {
    let path = std::env::var_os("TOMBOLO_BIN")
        .map_or_else(|| repository().join("target/release/tombolo"), PathBuf::from);
    let path = if path.is_absolute() {
        path
    } else {
        repository().join(path)
    };
    assert!(path.is_file(), "{} is not built; run `make e2e`", path.display());
    path
}

/// A command that ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

/// A clusterset of three brokers and three clusters. Stops, and deletes its files, when it is dropped.
#[derive(Debug)]
pub struct Clusterset {
    folder: TempDir,
    up: Option<Child>,
    ready_after: Duration,
}

impl Clusterset {
    /// Copies `clusters/local`, starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready; the message holds what `up` printed.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tombolo-")
            .tempdir()
            .expect("a temporary folder");
        copy(
            &repository().join("clusters/local"),
            &folder.path().join("clusters"),
        );
        let mut clusterset = Self {
            folder,
            up: None,
            ready_after: Duration::ZERO,
        };
        clusterset.up();
        clusterset
    }

    /// Starts `up` again on the same data directory.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn up(&mut self) {
        assert!(self.up.is_none(), "it runs already");
        let log = self.folder.path().join("up.log");
        let file = File::create(&log).expect("a log file");
        let began = Instant::now();
        let child = self
            .command(&["up", "--clusters", &self.clusters().to_string_lossy()])
            .stdout(file.try_clone().expect("the same file"))
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        self.up = Some(child);
        within(READY_DEADLINE, "up is ready", || {
            let printed = fs::read_to_string(&log).unwrap_or_default();
            let ended = self.up.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none(),
                "`up` ended ({ended:?}):\n{printed}\n{}",
                self.logs()
            );
            if printed.contains("Ctrl-C stops everything") {
                Ok(())
            } else {
                Err(printed)
            }
        });
        self.ready_after = began.elapsed();
    }

    /// From the start of `up` to its word that all is ready.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// What the last `up` printed.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
    }

    /// The folder with a folder per cluster; a test may edit the manifests.
    #[must_use]
    pub fn clusters(&self) -> PathBuf {
        self.folder.path().join("clusters")
    }

    /// `--data-dir`.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A file for the test's own use.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs a `tombolo` command against it.
    #[must_use]
    pub fn tombolo(&self, args: &[&str]) -> Finished {
        let output = self.command(args).output().expect("the binary starts");
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command with `-o json` and expects it to succeed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        let finished = self.tombolo(&[args, &["-o", "json"]].concat());
        assert_eq!(finished.code, 0, "{args:?}: {finished:?}");
        finished.json()
    }

    /// Kills -9 the processes of `cluster` (`broker-1` for a broker; `role` narrows) and keeps them down for `hold`.
    ///
    /// # Panics
    /// When `up` refuses.
    pub fn kill(&self, cluster: &str, role: Option<&str>, hold: Duration) -> Value {
        let request = serde_json::json!({
            "op": "kill", "cluster": cluster, "role": role, "hold_ms": u64::try_from(hold.as_millis()).expect("short"),
        });
        let mut stream = UnixStream::connect(self.data_dir().join("up.sock")).expect("up listens");
        writeln!(stream, "{request}").expect("up reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("up answers");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["answer"], "killed", "{answer}");
        answer
    }

    /// Stops `up` as Ctrl-C does and waits for its end; its exit code.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) -> i32 {
        let Some(mut child) = self.up.take() else { return 0 };
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("it runs");
        let (status, _) = within(STOP_DEADLINE, "up ends", || {
            child.try_wait().ok().flatten().ok_or("it still runs")
        });
        status.code().unwrap_or(-1)
    }

    /// The ends of all logs, for a failure message.
    #[must_use]
    pub fn logs(&self) -> String {
        let folder = self.data_dir().join("logs");
        let mut text = String::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            text.push_str(&format!("--- {}\n", entry.file_name().to_string_lossy()));
            text.extend(tail.into_iter().rev().map(|line| format!("{line}\n")));
        }
        text
    }

    /// The DNS server of a local cluster, by the block of addresses in its cluster.toml.
    #[must_use]
    pub fn dns(&self, cluster: &str) -> SocketAddr {
        let block = match cluster {
            "aks-westeurope" => 11,
            "eks-us-east-1" => 12,
            "gke-us-central1" => 13,
            other => panic!("no local cluster '{other}'"),
        };
        SocketAddr::from(([127, block, 0, 10], 5353))
    }
}

impl Drop for Clusterset {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let Some(mut child) = self.up.take() else { return };
        let pid = child.id().try_into().map(Pid::from_raw);
        if pid.is_ok_and(|pid| kill(pid, Signal::SIGTERM).is_ok()) && child.wait().is_err() {
            eprintln!("`up` could not be waited for");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
