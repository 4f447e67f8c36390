//! The loop that every feed runs: subscribe, take messages, back off, again.

use std::future::Future;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tombolo_daemon::backoff::Backoff;
use tombolo_daemon::seam::Seams;
use tonic::Streaming;
use tracing::{debug, info};

/// First delay before a feed subscribes again: the other process is on this machine and usually back at once.
const RETRY_BASE: Duration = Duration::from_millis(20);
/// Longest delay: a role that starts is heard within it.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Ends the feed's task with its last handle.
#[derive(Debug)]
pub(super) struct TaskGuard(AbortHandle);

impl TaskGuard {
    pub(super) fn new(task: &JoinHandle<()>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Subscribes through `open` for ever and gives each message to `take`; `take` returns false to drop a stream that broke
/// its protocol.
pub(super) async fn follow<M, Open, Opened>(
    name: &'static str,
    seams: Seams,
    mut open: Open,
    mut take: impl FnMut(Event<M>) -> bool,
) where
    Open: FnMut() -> Opened,
    Opened: Future<Output = Result<tonic::Response<Streaming<M>>, tonic::Status>>,
{
    let mut rng = seams.entropy.rng();
    let mut backoff = Backoff::full(RETRY_BASE, RETRY_MAX);
    loop {
        match open().await {
            Ok(response) => {
                let mut stream = response.into_inner();
                take(Event::Opened);
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            backoff.reset();
                            if !take(Event::Message(message)) {
                                break;
                            }
                        }
                        Ok(None) => break,
                        Err(status) => {
                            debug!(feed = name, %status, "feed interrupted");
                            break;
                        }
                    }
                }
                info!(feed = name, "feed ended; subscribing again");
                take(Event::Lost);
            }
            Err(status) => debug!(feed = name, %status, "feed not reachable"),
        }
        tokio::time::sleep(backoff.next(&mut rng)).await;
    }
}

/// What a feed sees.
pub(super) enum Event<M> {
    /// A new stream begins.
    Opened,
    /// A message of it.
    Message(M),
    /// The stream ended.
    Lost,
}
