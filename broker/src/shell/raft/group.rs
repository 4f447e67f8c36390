//! The broker group as the rest of a broker sees it: propose, read, and know who leads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tombolo_wire::v1;
use tonic::Code;

use super::batcher::{Attempt, Batcher, Decided};
use super::machine::Replica;
use super::reads::Reads;
use super::types::{Metrics, Raft};
use crate::bounds::{BATCH_MAX_BYTES, PROPOSE_TIMEOUT};
use crate::command::Command;
use crate::shell::config::Timing;
use crate::shell::connect::Peers;
use crate::stored::{Outcome, encode_commands};

/// Pause before another attempt, unless the leadership changes sooner.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Why a proposal or a read got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No leader, or no quorum behind it.
    #[error("no quorum of brokers answered within {} s; see that more than half of them run and reach each other", PROPOSE_TIMEOUT.as_secs())]
    Unanswered,
    /// Too many wait.
    #[error("the broker is overloaded: too many writes wait; try again a little later")]
    Overloaded,
    /// Nothing was written.
    #[error("the change has {0} bytes; at most {BATCH_MAX_BYTES} are written at once: split it")]
    TooLarge(usize),
    /// It may have been written or not, and must not be repeated blindly.
    #[error("the answer was lost ({0}); see with `tombolo status` whether it was done before you repeat it")]
    Unknown(String),
}

/// The group, seen from one broker.
pub struct Group {
    id: u64,
    raft: Raft,
    replica: Arc<Replica>,
    peers: Arc<Peers>,
    batcher: Batcher,
    reads: Reads,
    timing: Timing,
    /// When the leader was last heard by this follower.
    heard: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Group {
    /// Ties the parts together.
    #[must_use]
    pub fn new(
        id: u64,
        raft: Raft,
        replica: Arc<Replica>,
        peers: Arc<Peers>,
        batcher: Batcher,
        reads: Reads,
        timing: Timing,
    ) -> Self {
        Self {
            id,
            raft,
            replica,
            peers,
            batcher,
            reads,
            timing,
            heard: Mutex::new(None),
        }
    }

    /// This broker's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Raft itself.
    #[must_use]
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The applied state.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Timing of the profile.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// What Raft tells of itself now.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    /// Whether this broker leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads_in().is_some()
    }

    /// The term in which this broker leads, as far as it knows.
    #[must_use]
    pub fn leads_in(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        leader_of(&metrics)
            .filter(|(id, _)| *id == self.id)
            .map(|_| metrics.current_term)
    }

    /// The leader's peer client, unless this broker leads or nobody does.
    #[must_use]
    pub fn leader_client(&self) -> Option<v1::peer_client::PeerClient<tonic::transport::Channel>> {
        let (id, address) = leader_of(&self.raft.metrics().borrow())?;
        (id != self.id).then(|| self.peers.client(id, address))
    }

    /// Notes that the leader was heard at `now`.
    pub fn heard_leader(&self, now: Instant) {
        *self.heard.lock() = Some(now);
    }

    /// Whether this broker's applied state is known to be close behind a quorum's: lease losses are then to be believed.
    #[must_use]
    pub fn is_fresh(&self, now: Instant) -> bool {
        let metrics = self.metrics();
        if leader_of(&metrics).is_none_or(|(id, _)| id != self.id) {
            return self
                .heard
                .lock()
                .is_some_and(|heard| now.duration_since(heard) <= self.timing.fresh_within());
        }
        let alone = metrics.membership_config.membership().voter_ids().count() == 1;
        let within = |ms: u64| Duration::from_millis(ms) <= self.timing.fresh_within();
        alone || metrics.millis_since_quorum_ack.is_some_and(within)
    }

    /// Proposes `commands`, together and in their order, wherever the leader is, and waits until they are committed and
    /// applied there.
    ///
    /// # Errors
    /// [`GroupError`]; a refusal is no error but an outcome.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Decided, GroupError> {
        let may_be_repeated = commands.iter().all(Command::may_be_repeated);
        let mut is_under_way = false;
        let attempts = async {
            let mut metrics = self.raft.metrics();
            loop {
                let leader = leader_of(&metrics.borrow_and_update());
                is_under_way = leader.is_some();
                let attempt = match leader {
                    None => Err(Attempt::NotLeader),
                    Some((id, _)) if id == self.id => self.batcher.propose(commands.clone()).await,
                    Some((id, address)) => self.forward(id, address, &commands).await,
                };
                match attempt {
                    Ok(decided) => return Ok(decided),
                    Err(Attempt::Overloaded) => return Err(GroupError::Overloaded),
                    Err(Attempt::TooLarge(bytes)) => return Err(GroupError::TooLarge(bytes)),
                    Err(Attempt::Lost(why)) if !may_be_repeated => return Err(GroupError::Unknown(why)),
                    Err(Attempt::Lost(why)) => tracing::debug!(why, "proposal lost; trying again"),
                    Err(Attempt::NotLeader) => is_under_way = false,
                }
                next_attempt(&mut metrics).await;
            }
        };
        match timeout(PROPOSE_TIMEOUT, attempts).await {
            Ok(answer) => answer,
            Err(_) => Err(out_of_time(is_under_way, may_be_repeated)),
        }
    }

    /// Proposes on this broker only, for a peer that forwards.
    ///
    /// # Errors
    /// [`Attempt`] says what is known of its fate.
    pub async fn propose_here(&self, commands: Vec<Command>) -> Result<Decided, Attempt> {
        if !self.leads() {
            return Err(Attempt::NotLeader);
        }
        self.batcher.propose(commands).await
    }

    /// The read point of this broker as leader.
    ///
    /// # Errors
    /// [`Attempt::NotLeader`] and the like.
    pub async fn read_index_here(&self) -> Result<u64, Attempt> {
        self.reads.index().await
    }

    /// Waits until this broker has applied everything that was committed when the call began.
    ///
    /// # Errors
    /// [`GroupError::Unanswered`] when no quorum confirms it.
    pub async fn catch_up(&self) -> Result<(), GroupError> {
        let attempts = async {
            let mut metrics = self.raft.metrics();
            loop {
                let leader = leader_of(&metrics.borrow_and_update());
                let index = match leader {
                    None => Err(Attempt::NotLeader),
                    Some((id, _)) if id == self.id => self.reads.index().await,
                    Some((id, address)) => {
                        let asked = self
                            .peers
                            .client(id, address)
                            .read_index(v1::ReadIndexRequest {})
                            .await;
                        asked
                            .map(|reply| reply.into_inner().log_index)
                            .map_err(|status| attempt_of(&status))
                    }
                };
                match index {
                    Ok(index) => return self.wait_applied(index).await,
                    Err(why) => tracing::debug!(?why, "no read point yet; trying again"),
                }
                next_attempt(&mut metrics).await;
            }
        };
        timeout(PROPOSE_TIMEOUT, attempts)
            .await
            .map_err(|_| GroupError::Unanswered)
    }

    /// Waits until this broker has applied the entry at `index`.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.replica.applied();
        // The sender lives as long as the replica, which we hold.
        let _ = applied.wait_for(|applied| *applied >= index).await;
    }

    async fn forward(&self, id: u64, address: SocketAddr, commands: &[Command]) -> Result<Decided, Attempt> {
        let command = encode_commands(commands);
        if command.len() > BATCH_MAX_BYTES {
            return Err(Attempt::TooLarge(command.len()));
        }
        let request = v1::ForwardRequest { command };
        let reply = self.peers.client(id, address).forward(request).await;
        let reply = reply.map_err(|status| attempt_of(&status))?.into_inner();
        let outcomes =
            Outcome::decode_all(reply.outcome).map_err(|error| Attempt::Lost(error.to_string()))?;
        // Whoever asks this broker next reads its own write.
        self.wait_applied(reply.log_index).await;
        Ok(Decided {
            outcomes,
            index: reply.log_index,
        })
    }
}

/// What a caller is told when [`PROPOSE_TIMEOUT`] is over: an attempt that is under way may still be committed.
fn out_of_time(is_under_way: bool, may_be_repeated: bool) -> GroupError {
    if is_under_way && !may_be_repeated {
        return GroupError::Unknown(format!("none came within {} s", PROPOSE_TIMEOUT.as_secs()));
    }
    GroupError::Unanswered
}

/// What a peer's status says about a forwarded question: the reverse of [`status_of`].
fn attempt_of(status: &tonic::Status) -> Attempt {
    match status.code() {
        Code::FailedPrecondition => Attempt::NotLeader,
        Code::ResourceExhausted => Attempt::Overloaded,
        _ => Attempt::Lost(format!("{:?}: {}", status.code(), status.message())),
    }
}

/// How a forwarded question is answered when there is no decision.
#[must_use]
pub fn status_of(attempt: &Attempt) -> tonic::Status {
    match attempt {
        Attempt::NotLeader => tonic::Status::failed_precondition("this broker does not lead; ask the leader"),
        Attempt::Overloaded => {
            tonic::Status::resource_exhausted("too many writes wait; try again a little later")
        }
        Attempt::TooLarge(bytes) => tonic::Status::invalid_argument(GroupError::TooLarge(*bytes).to_string()),
        Attempt::Lost(why) => tonic::Status::unavailable(why.clone()),
    }
}

/// The leader and where it is.
fn leader_of(metrics: &Metrics) -> Option<(u64, SocketAddr)> {
    let id = metrics.current_leader?;
    let node = metrics.membership_config.membership().get_node(&id)?;
    Some((id, node.peer.parse().ok()?))
}

async fn next_attempt(metrics: &mut watch::Receiver<Metrics>) {
    // Either is a reason to try again.
    let _ = timeout(RETRY_AFTER, metrics.changed()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_be_committed_is_not_said_to_have_failed() {
        for (is_under_way, may_be_repeated, is_unknown) in [
            (true, false, true),
            (true, true, false),
            (false, false, false),
            (false, true, false),
        ] {
            let error = out_of_time(is_under_way, may_be_repeated);
            assert_eq!(
                matches!(error, GroupError::Unknown(_)),
                is_unknown,
                "{is_under_way} {may_be_repeated}"
            );
        }
    }
}
