//! Proposals, many to a log entry: whatever arrives while a write is in flight goes into the next one. Nothing lingers
//! for company: a lone proposal is written at once.

use std::sync::Arc;

use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tombolo_daemon::seam::clock::Clock;

use super::types::{EncodedBatch, Raft};
use crate::bounds::{BATCH_MAX_BYTES, BATCH_MAX_COMMANDS, PROPOSALS_MAX};
use crate::command::{Batch, Command};
use crate::shell::authority::unix_ms;
use crate::shell::metrics::Metrics;
use crate::stored::{Outcome, encode_batch, encoded_len};

/// A proposal that is committed and applied. Its commands stand in one log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What each of its commands led to, in their order.
    pub outcomes: Vec<Outcome>,
    /// Where it stands in the log.
    pub index: u64,
}

/// Why an attempt to propose ended without a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// This broker does not lead; nothing was written.
    NotLeader,
    /// The leadership or the connection was lost on the way: it may have been written or not.
    Lost(String),
    /// [`PROPOSALS_MAX`] wait already.
    Overloaded,
}

struct Proposal {
    commands: Vec<Command>,
    answer: oneshot::Sender<Result<Decided, Attempt>>,
}

/// Takes proposals of this broker as leader.
#[derive(Debug, Clone)]
pub struct Batcher {
    proposals: mpsc::Sender<Proposal>,
}

impl Batcher {
    /// A batcher, and the task that writes.
    pub fn new(
        raft: Raft,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (proposals, incoming) = mpsc::channel(PROPOSALS_MAX);
        (Self { proposals }, write_batches(raft, clock, metrics, incoming))
    }

    /// Proposes `commands` on this broker, together and in their order.
    ///
    /// # Errors
    /// [`Attempt`] says what is known of its fate.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Decided, Attempt> {
        let (answer, decided) = oneshot::channel();
        self.proposals
            .try_send(Proposal { commands, answer })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Attempt::Overloaded,
                mpsc::error::TrySendError::Closed(_) => Attempt::NotLeader,
            })?;
        decided
            .await
            .unwrap_or_else(|_| Err(Attempt::Lost("this broker is stopping".to_owned())))
    }
}

async fn write_batches(
    raft: Raft,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    mut incoming: mpsc::Receiver<Proposal>,
) {
    while let Some(first) = incoming.recv().await {
        let mut size = Size::of(&first);
        let mut batch = vec![first];
        while size.has_room() {
            let Ok(next) = incoming.try_recv() else { break };
            size = size + Size::of(&next);
            batch.push(next);
        }
        let mut commands = Vec::with_capacity(size.commands);
        let mut answers = Vec::with_capacity(batch.len());
        for proposal in batch {
            answers.push((proposal.commands.len(), proposal.answer));
            commands.extend(proposal.commands);
        }
        let started = clock.now();
        let encoded = encode_batch(&Batch {
            unix_ms: unix_ms(clock.wall()),
            commands,
        });
        let written = raft.client_write(EncodedBatch(encoded)).await;
        metrics
            .proposal_seconds
            .observe((clock.now() - started).as_secs_f64());
        match written {
            Ok(response) => {
                let index = response.log_id.index;
                let mut outcomes = response.data.0.into_iter();
                for (commands, answer) in answers {
                    let outcomes = outcomes.by_ref().take(commands).collect();
                    // Whoever no longer waits gave up; the decision stands.
                    let _ = answer.send(Ok(Decided { outcomes, index }));
                }
            }
            Err(error) => {
                let attempt = match error {
                    RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
                        Attempt::Lost("the leadership moved while it was written".to_owned())
                    }
                    other => Attempt::Lost(other.to_string()),
                };
                for (_, answer) in answers {
                    let _ = answer.send(Err(attempt.clone()));
                }
            }
        }
    }
}

/// What a batch holds so far.
#[derive(Clone, Copy)]
struct Size {
    commands: usize,
    bytes: usize,
}

impl Size {
    fn of(proposal: &Proposal) -> Self {
        let bytes = proposal.commands.iter().map(encoded_len).sum();
        Self {
            commands: proposal.commands.len(),
            bytes,
        }
    }

    fn has_room(self) -> bool {
        self.commands < BATCH_MAX_COMMANDS && self.bytes < BATCH_MAX_BYTES
    }
}

impl std::ops::Add for Size {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            commands: self.commands + other.commands,
            bytes: self.bytes + other.bytes,
        }
    }
}
