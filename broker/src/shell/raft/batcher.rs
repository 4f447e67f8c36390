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
    /// So many bytes are more than one log entry holds; nothing was written.
    TooLarge(usize),
}

struct Proposal {
    commands: Vec<Command>,
    size: Size,
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
        let size = Size::of(&commands);
        // An entry that no append can carry would stop the whole group.
        if size.bytes > BATCH_MAX_BYTES {
            return Err(Attempt::TooLarge(size.bytes));
        }
        let (answer, decided) = oneshot::channel();
        self.proposals
            .try_send(Proposal {
                commands,
                size,
                answer,
            })
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
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(first) => first,
            None => match incoming.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let batch;
        (batch, left_over) = gather(first, || incoming.try_recv().ok());
        let mut commands = Vec::new();
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

/// The next batch: `first` and what follows it, up to the first that does not fit, which begins the batch after.
fn gather(first: Proposal, mut next: impl FnMut() -> Option<Proposal>) -> (Vec<Proposal>, Option<Proposal>) {
    let mut size = first.size;
    let mut batch = vec![first];
    while let Some(next) = next() {
        size = size + next.size;
        if !size.fits() {
            return (batch, Some(next));
        }
        batch.push(next);
    }
    (batch, None)
}

/// What a batch holds so far.
#[derive(Clone, Copy)]
struct Size {
    commands: usize,
    bytes: usize,
}

impl Size {
    fn of(commands: &[Command]) -> Self {
        Self {
            commands: commands.len(),
            bytes: commands.iter().map(encoded_len).sum(),
        }
    }

    fn fits(self) -> bool {
        self.commands <= BATCH_MAX_COMMANDS && self.bytes <= BATCH_MAX_BYTES
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

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(commands: usize, bytes: usize) -> Proposal {
        Proposal {
            commands: Vec::new(),
            size: Size { commands, bytes },
            answer: oneshot::channel().0,
        }
    }

    #[test]
    fn a_batch_closes_before_what_would_pass_its_bounds() {
        let (half, most) = (BATCH_MAX_BYTES / 2, BATCH_MAX_BYTES);
        let table: [(&[(usize, usize)], usize); 6] = [
            (&[(1, 10)], 1),
            (&[(1, half), (1, half), (1, 1)], 2),
            (&[(1, half), (1, half + 1)], 1),
            (&[(1, 1), (1, most), (1, 1)], 1),
            (&[(BATCH_MAX_COMMANDS, 1), (1, 1)], 1),
            (&[(2 * BATCH_MAX_COMMANDS, 1), (1, 1)], 1),
        ];
        for (sizes, taken) in table {
            let mut waiting = sizes.iter().map(|(commands, bytes)| proposal(*commands, *bytes));
            let first = waiting.next().unwrap();
            let (batch, left_over) = gather(first, || waiting.next());
            let begun = usize::from(left_over.is_some());
            assert_eq!(
                (batch.len(), begun),
                (taken, usize::from(sizes.len() > taken)),
                "{sizes:?}"
            );
            assert_eq!(waiting.count(), sizes.len() - taken - begun, "none is lost");
        }
    }

    #[tokio::test]
    async fn what_no_entry_holds_is_refused_before_it_is_written() {
        let (proposals, mut incoming) = mpsc::channel(1);
        let report = Command::ReportDrill {
            cluster: tombolo_clusterset::ClusterId::parse("west").unwrap(),
            drill: tombolo_clusterset::DrillId(1),
            report: vec![0; BATCH_MAX_BYTES].into(),
        };
        let refused = Batcher { proposals }.propose(vec![report]).await;
        assert!(
            matches!(refused, Err(Attempt::TooLarge(bytes)) if bytes > BATCH_MAX_BYTES),
            "{refused:?}"
        );
        assert!(incoming.recv().await.is_none());
    }
}
