//! Peer: brokers among themselves. The listener admits brokers only; here each is asked whether it still is one.

use std::sync::Arc;

use bytes::BytesMut;
use openraft::error::RaftError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use tombolo_trust::Subject;
use tombolo_wire::v1;
use tombolo_wire::v1::peer_server::Peer;
use tombolo_wire::v1::raft_snapshot_chunk::Chunk;
use tonic::{Request, Response, Status, Streaming};

use super::{Broker, caller, cluster_id, denied, unauthenticated};
use crate::bounds::{CLUSTERS_MAX, SNAPSHOT_MAX_BYTES};
use crate::shell::raft::group::status_of;
use crate::shell::raft::network::{BodyError, SnapshotHead, pack, unpack};
use crate::shell::raft::types::{BrokerRaft, Snapshot};
use crate::shell::renewals::renew_here;
use crate::stored::{Outcome, decode_batch};

/// The service.
#[derive(Debug, Clone)]
pub struct PeerService {
    broker: Arc<Broker>,
}

impl PeerService {
    /// Serves for `broker`.
    #[must_use]
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }

    /// Whether a broker of this group calls. One that was removed still has its certificate; one that is being added
    /// may know more of the group than this broker has applied, so only removal counts.
    fn check<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        let id = caller(request).ok_or_else(unauthenticated)?;
        let Subject::Broker(broker) = *id.subject() else {
            return Err(denied(&id, "a broker"));
        };
        if self.broker.read(|state| state.brokers.retired.contains(&broker)) {
            return Err(Status::permission_denied(format!(
                "broker {broker} was removed from this group; add a broker under a new id instead"
            )));
        }
        Ok(broker)
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn append_entries(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        self.check(&request)?;
        let rpc: AppendEntriesRequest<BrokerRaft> = unpack(request.get_ref()).map_err(body)?;
        let answer: Result<AppendEntriesResponse<u64>, RaftError<u64>> =
            self.broker.group.raft().append_entries(rpc).await;
        if matches!(
            answer,
            Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_))
        ) {
            self.broker.group.heard_leader(self.broker.seams.clock.now());
        }
        pack(&answer).map(Response::new).map_err(body)
    }

    async fn vote(&self, request: Request<v1::RaftMessage>) -> Result<Response<v1::RaftMessage>, Status> {
        self.check(&request)?;
        let rpc: VoteRequest<u64> = unpack(request.get_ref()).map_err(body)?;
        let answer = self.broker.group.raft().vote(rpc).await;
        pack(&answer).map(Response::new).map_err(body)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        self.check(&request)?;
        let mut chunks = request.into_inner();
        let head = chunks.message().await?.and_then(|chunk| chunk.chunk);
        let Some(Chunk::Head(head)) = head else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let SnapshotHead { vote, meta } = unpack(&head).map_err(body)?;
        let mut received = BytesMut::new();
        while let Some(chunk) = chunks.message().await? {
            let Some(Chunk::Data(data)) = chunk.chunk else {
                return Err(Status::invalid_argument("a snapshot has one head, then data"));
            };
            if received.len() + data.len() > SNAPSHOT_MAX_BYTES {
                return Err(Status::resource_exhausted(format!(
                    "a snapshot has at most {SNAPSHOT_MAX_BYTES} bytes"
                )));
            }
            received.extend_from_slice(&data);
        }
        let snapshot = Snapshot {
            meta,
            snapshot: Box::new(received.freeze()),
        };
        let answer = self
            .broker
            .group
            .raft()
            .install_full_snapshot(vote, snapshot)
            .await;
        pack(&answer).map(Response::new).map_err(body)
    }

    async fn forward(
        &self,
        request: Request<v1::ForwardRequest>,
    ) -> Result<Response<v1::ForwardReply>, Status> {
        self.check(&request)?;
        let commands = decode_batch(request.into_inner().command)
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .commands;
        let decided = self
            .broker
            .group
            .propose_here(commands)
            .await
            .map_err(|attempt| status_of(&attempt))?;
        let outcome = Outcome::encode_all(&decided.outcomes);
        Ok(Response::new(v1::ForwardReply {
            outcome,
            log_index: decided.index,
        }))
    }

    async fn renew_leases(
        &self,
        request: Request<v1::RenewLeasesRequest>,
    ) -> Result<Response<v1::RenewLeasesReply>, Status> {
        self.check(&request)?;
        let clusters = request.into_inner().clusters;
        if clusters.len() > 2 * CLUSTERS_MAX {
            return Err(Status::invalid_argument(format!(
                "field clusters: {} are more than there can be",
                clusters.len()
            )));
        }
        let clusters = clusters
            .iter()
            .map(|text| cluster_id("clusters", text))
            .collect::<Result<Vec<_>, _>>()?;
        let broker = &self.broker;
        if renew_here(
            &broker.group,
            &broker.leases,
            broker.seams.clock.as_ref(),
            &clusters,
        ) {
            Ok(Response::new(v1::RenewLeasesReply {}))
        } else {
            Err(Status::failed_precondition(
                "this broker does not lead; ask the leader",
            ))
        }
    }

    async fn read_index(
        &self,
        request: Request<v1::ReadIndexRequest>,
    ) -> Result<Response<v1::ReadIndexReply>, Status> {
        self.check(&request)?;
        let log_index = self
            .broker
            .group
            .read_index_here()
            .await
            .map_err(|attempt| status_of(&attempt))?;
        Ok(Response::new(v1::ReadIndexReply { log_index }))
    }
}

fn body(error: BodyError) -> Status {
    Status::invalid_argument(error.to_string())
}
