//! Linearizable reads: one quorum round for everyone who asked before it began.

use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::batcher::Attempt;
use super::types::Raft;

/// Reads that wait for a round: every stream of a broker may want one.
const READS_MAX: usize = 1_024;

type Answer = oneshot::Sender<Result<u64, Attempt>>;

/// Takes questions for the read point of this broker as leader.
#[derive(Debug, Clone)]
pub struct Reads {
    questions: mpsc::Sender<Answer>,
}

impl Reads {
    /// A gate, and the task that asks the quorum.
    pub fn new(raft: Raft) -> (Self, impl Future<Output = ()> + Send) {
        let (questions, incoming) = mpsc::channel(READS_MAX);
        (Self { questions }, ask(raft, incoming))
    }

    /// The commit index, confirmed by a quorum after this call began.
    ///
    /// # Errors
    /// When this broker does not lead, or no quorum answers.
    pub async fn index(&self) -> Result<u64, Attempt> {
        let (answer, index) = oneshot::channel();
        self.questions.try_send(answer).map_err(|_| Attempt::Overloaded)?;
        index.await.unwrap_or(Err(Attempt::NotLeader))
    }
}

async fn ask(raft: Raft, mut incoming: mpsc::Receiver<Answer>) {
    while let Some(first) = incoming.recv().await {
        let mut waiting = vec![first];
        // Only those that asked before the round begins may share it.
        while let Ok(next) = incoming.try_recv() {
            waiting.push(next);
        }
        let index = match raft.ensure_linearizable().await {
            Ok(log_id) => Ok(log_id.map_or(0, |id| id.index)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => Err(Attempt::NotLeader),
            Err(error) => Err(Attempt::Lost(error.to_string())),
        };
        for answer in waiting {
            // Whoever no longer waits gave up.
            let _ = answer.send(index.clone());
        }
    }
}
