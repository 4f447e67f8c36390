//! `up.sock`: how `down`, `status` and real drills speak to a running `up`. One JSON line each way.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Name of the socket in `up`'s data directory.
pub(crate) const SOCKET: &str = "up.sock";

/// Longest request or answer, bytes: a clusterset of 250 processes fits many times over.
const MAX_LINE: u64 = 1 << 20;
/// How long a caller may take to send its line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `up` may take to answer; `down` waits for every process to drain.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests waiting for `up`: operators, not machines, speak here.
const QUEUE: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Which processes run.
    Status,
    /// Stop everything.
    Down,
    /// Kill -9 the processes of a role (`None`: all) of a cluster now, and start them again after `hold_ms`.
    Kill {
        cluster: String,
        role: Option<String>,
        hold_ms: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessInfo {
    pub(crate) role: String,
    pub(crate) cluster: String,
    /// 0 while it is held down by a drill or waits for its restart.
    pub(crate) pid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum Answer {
    Status {
        ready: bool,
        processes: Vec<ProcessInfo>,
    },
    Stopping,
    /// Wall clock of the kill, microseconds since the Unix epoch, and whom it met.
    Killed {
        at_unix_us: u64,
        processes: Vec<ProcessInfo>,
    },
    Refused {
        reason: String,
    },
}

/// A request and where its answer goes.
pub(crate) type Call = (Request, oneshot::Sender<Answer>);

/// Serves the socket for as long as the returned receiver lives.
pub(crate) fn serve(data_dir: &Path) -> Result<mpsc::Receiver<Call>> {
    let path = data_dir.join(SOCKET);
    // The lock on the data directory is held: a socket that is there belongs to a run that ended.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove the stale socket {}", path.display()));
    }
    let listener = UnixListener::bind(&path).with_context(|| {
        format!(
            "cannot listen on {} (a socket's path may hold 107 bytes; use a shorter --data-dir)",
            path.display()
        )
    })?;
    let (calls, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while !calls.is_closed() {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, calls).await {
                            tracing::debug!(%error, "a control request failed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket accepts nothing more");
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

async fn answer(stream: UnixStream, calls: mpsc::Sender<Call>) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    timeout(
        REQUEST_TIMEOUT,
        BufReader::new(read.take(MAX_LINE)).read_line(&mut line),
    )
    .await??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (sender, receiver) = oneshot::channel();
            calls.send((request, sender)).await.context("up is ending")?;
            receiver.await.context("up ended before it answered")?
        }
        Err(error) => Answer::Refused {
            reason: format!("the request makes no sense: {error}"),
        },
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await?;
    Ok(())
}

/// Asks the `up` of `data_dir`.
pub(crate) async fn ask(data_dir: &Path, request: &Request) -> Result<Answer> {
    let path = data_dir.join(SOCKET);
    let stream = UnixStream::connect(&path).await.with_context(|| {
        format!(
            "no clusterset runs with data directory {} (start one with `tombolo up`, or name its --data-dir)",
            data_dir.display()
        )
    })?;
    let (read, mut write) = stream.into_split();
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await?;
    let mut line = String::new();
    timeout(
        ANSWER_TIMEOUT,
        BufReader::new(read.take(MAX_LINE)).read_line(&mut line),
    )
    .await
    .context("up does not answer")??;
    match serde_json::from_str(&line).context("up's answer makes no sense")? {
        Answer::Refused { reason } => bail!(reason),
        answer => Ok(answer),
    }
}
