//! Raft's messages over Peer RPCs. Bodies are openraft's types in postcard, named by a format number.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Vote};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tombolo_wire::v1;

use super::types::{Addresses, BrokerRaft, RAFT_FORMAT, Snapshot, SnapshotMeta};
use crate::bounds::CHUNK_BYTES;
use crate::shell::connect::Peers;

/// Pause after a broker could not be reached: short against an election, long against a busy loop.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Chunks of a snapshot that wait for the connection.
const CHUNKS_AHEAD: usize = 4;

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Another build, further away than two releases.
    #[error("the Raft message has format {0}, this build speaks {RAFT_FORMAT}; upgrade the older broker")]
    Format(u32),
    /// The bytes are no message.
    #[error("the Raft message does not decode: {0}")]
    Malformed(#[from] postcard::Error),
}

/// A message with `body`.
///
/// # Errors
/// When the encoder fails.
pub fn pack<T: Serialize>(body: &T) -> Result<v1::RaftMessage, BodyError> {
    Ok(v1::RaftMessage {
        format: RAFT_FORMAT,
        body: postcard::to_stdvec(body)?.into(),
    })
}

/// The body of a message.
///
/// # Errors
/// [`BodyError`].
pub fn unpack<T: DeserializeOwned>(message: &v1::RaftMessage) -> Result<T, BodyError> {
    if message.format != RAFT_FORMAT {
        return Err(BodyError::Format(message.format));
    }
    Ok(postcard::from_bytes(&message.body)?)
}

/// Head of a streamed snapshot.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct SnapshotHead {
    /// Of the leader that sends it.
    pub vote: Vote<u64>,
    /// Of the snapshot.
    pub meta: SnapshotMeta,
}

/// Makes connections for Raft.
#[derive(Debug, Clone)]
pub struct Network {
    peers: Arc<Peers>,
}

impl Network {
    /// Over the channels of `peers`.
    #[must_use]
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }
}

impl RaftNetworkFactory<BrokerRaft> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &Addresses) -> Connection {
        Connection {
            peers: Arc::clone(&self.peers),
            target,
            address: node.peer.parse().ok(),
        }
    }
}

/// Raft's line to one broker.
#[derive(Debug)]
pub struct Connection {
    peers: Arc<Peers>,
    target: u64,
    /// None when the membership holds no address, which only a damaged log does.
    address: Option<SocketAddr>,
}

type RpcError<E = RaftError<u64>> = RPCError<u64, Addresses, E>;

impl Connection {
    fn client(
        &self,
    ) -> Result<tombolo_wire::v1::peer_client::PeerClient<tonic::transport::Channel>, Unreachable> {
        let missing =
            || std::io::Error::other(format!("broker {} has no address in the membership", self.target));
        let address = self.address.ok_or_else(|| Unreachable::new(&missing()))?;
        Ok(self.peers.client(self.target, address))
    }

    fn answer<T: DeserializeOwned>(
        &self,
        answer: Result<tonic::Response<v1::RaftMessage>, tonic::Status>,
    ) -> Result<T, RpcError> {
        let answer = answer.map_err(|status| Unreachable::new(&status))?.into_inner();
        let result: Result<T, RaftError<u64>> = unpack(&answer).map_err(|error| NetworkError::new(&error))?;
        result.map_err(|error| RemoteError::new(self.target, error).into())
    }
}

impl RaftNetwork<BrokerRaft> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<BrokerRaft>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let message = pack(&rpc).map_err(|error| NetworkError::new(&error))?;
        self.answer(self.client()?.append_entries(message).await)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        let message = pack(&rpc).map_err(|error| NetworkError::new(&error))?;
        self.answer(self.client()?.vote(message).await)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<BrokerRaft, Fatal<u64>>> {
        let head = pack(&SnapshotHead {
            vote,
            meta: snapshot.meta,
        })
        .map_err(|error| NetworkError::new(&error))?;
        let mut client = self.client()?;
        let sending = client.install_snapshot(chunks(head, *snapshot.snapshot));
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = tokio::time::timeout(option.hard_ttl(), sending) => answer,
        };
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "the snapshot took too long");
        let answer = answer
            .map_err(|_| NetworkError::new(&late()))?
            .map_err(|status| Unreachable::new(&status))?;
        let result: Result<SnapshotResponse<u64>, Fatal<u64>> =
            unpack(&answer.into_inner()).map_err(|error| NetworkError::new(&error))?;
        result.map_err(|error| RemoteError::new(self.target, error).into())
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_AFTER))
    }
}

/// The head, then the body in pieces.
fn chunks(
    head: v1::RaftMessage,
    body: Bytes,
) -> impl futures_util::Stream<Item = v1::RaftSnapshotChunk> + Send {
    use v1::raft_snapshot_chunk::Chunk;
    let (sender, receiver) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(async move {
        let pieces = (0..body.len())
            .step_by(CHUNK_BYTES)
            .map(|at| body.slice(at..body.len().min(at + CHUNK_BYTES)));
        for chunk in std::iter::once(Chunk::Head(head)).chain(pieces.map(Chunk::Data)) {
            // The call is over: the sender ends with it.
            if sender
                .send(v1::RaftSnapshotChunk { chunk: Some(chunk) })
                .await
                .is_err()
            {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}
