//! Operator: people and their tools.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_clusterset::{Drill, DrillId, Namespace};
use tombolo_trust::issue::{BROKER_LEAF_TTL, OPERATOR_LEAF_TTL};
use tombolo_trust::token::MINT_RANDOM_LEN;
use tombolo_trust::{JoinToken, OperatorName, SpiffeId, TokenId};
use tombolo_wire::convert::service_key;
use tombolo_wire::v1;
use tombolo_wire::v1::operator_server::Operator;
use tombolo_wire::v1::rotate_root_request::Step;
use tonic::{Request, Response, Status};

use super::watch::everything;
use super::{Broker, authority_status, bundle, cluster_id, group_status, invalid, operator};
use crate::bounds::CHUNK_BYTES;
use crate::command::{BrokerAddresses, Command, Reply, RotationStep};
use crate::shell::authority::random;
use crate::shell::restore;
use crate::stored::encode_state;

/// Longest wait for a drill's report: the longest drill, and time for the report to come in.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(16 * 60);

/// Chunks of a back-up that wait for the connection.
const CHUNKS_AHEAD: usize = 4;

/// The service.
#[derive(Debug, Clone)]
pub struct OperatorService {
    broker: Arc<Broker>,
}

type Chunks = ReceiverStream<Result<v1::BackupChunk, Status>>;
type Events = ReceiverStream<Result<v1::WatchEvent, Status>>;

impl OperatorService {
    /// Serves for `broker`.
    #[must_use]
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }

    async fn catch_up(&self) -> Result<(), Status> {
        self.broker.group.catch_up().await.map_err(group_status)
    }

    fn rotation(&self) -> Result<v1::RotateRootReply, Status> {
        let trust = self.broker.trust()?;
        let lagging = self.broker.read(crate::state::State::lagging);
        Ok(v1::RotateRootReply {
            stage: trust.stage.as_str().to_owned(),
            trust_revision: trust.revision,
            lagging: lagging
                .into_iter()
                .map(|(cluster, why)| format!("{cluster}: {why}"))
                .collect(),
        })
    }

    fn subject(&self, text: &str) -> Result<(SpiffeId, Duration), Status> {
        let trust_domain = self.broker.trust()?.trust_domain;
        let wrong = |why: String| Status::invalid_argument(format!("field subject: '{text}': {why}"));
        match text.split_once('/') {
            Some(("operator", name)) => {
                let name = OperatorName::parse(name).map_err(|error| wrong(error.to_string()))?;
                Ok((SpiffeId::operator(trust_domain, name), OPERATOR_LEAF_TTL))
            }
            Some(("broker", id)) => {
                let id: u64 = id
                    .parse()
                    .map_err(|_| wrong("a broker's id is a number from 1".to_owned()))?;
                if id == 0 || self.broker.read(|state| state.brokers.retired.contains(&id)) {
                    return Err(Status::failed_precondition(format!(
                        "broker id {id} was used before or is 0; ids are never used again: choose another"
                    )));
                }
                Ok((SpiffeId::broker(trust_domain, id), BROKER_LEAF_TTL))
            }
            _ => Err(wrong("use operator/NAME or broker/N".to_owned())),
        }
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
    type BackupStream = Chunks;
    type ViewStream = Events;

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let name = operator(&request)?;
        let request = request.into_inner();
        let cluster = cluster_id("cluster", &request.cluster)?;
        let trust = self.broker.trust()?;
        let random = random::<MINT_RANDOM_LEN>().map_err(authority_status)?;
        let token = JoinToken::mint(random, trust.trust_domain, trust.signing.key, cluster.clone());
        let hash = *token.secret_hash().as_bytes();
        let id = token.id();
        let command = Command::CreateToken {
            id,
            hash,
            cluster: cluster.clone(),
            ttl_ms: request.ttl_ms,
        };
        self.broker.decide(command).await?;
        tracing::info!(operator = name, %cluster, token = %id, "join token created");
        let expires_unix_ms = self
            .broker
            .read(|state| state.tokens.get(&id).map_or(0, |token| token.expires_ms));
        Ok(Response::new(v1::CreateTokenReply {
            token: token.to_text(),
            token_id: id.to_string(),
            expires_unix_ms,
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        operator(&request)?;
        self.catch_up().await?;
        let tokens = self.broker.read(|state| {
            let info = |(id, token): (&TokenId, &crate::state::TokenRecord)| v1::TokenInfo {
                token_id: id.to_string(),
                cluster: token.cluster.to_string(),
                expires_unix_ms: token.expires_ms,
                used: token.used_by.is_some(),
            };
            state.tokens.iter().map(info).collect()
        });
        Ok(Response::new(v1::ListTokensReply { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::Committed>, Status> {
        operator(&request)?;
        let id = TokenId::parse(&request.get_ref().token_id).ok_or_else(|| {
            Status::invalid_argument("field token_id: not 16 hexadecimal digits; see `tombolo token list`")
        })?;
        self.broker
            .commit(Command::RevokeToken { id })
            .await
            .map(Response::new)
    }

    async fn evict(&self, request: Request<v1::EvictRequest>) -> Result<Response<v1::EvictReply>, Status> {
        let name = operator(&request)?;
        let cluster = cluster_id("cluster", &request.get_ref().cluster)?;
        let (reply, log_index) = self
            .broker
            .decide(Command::Evict {
                cluster: cluster.clone(),
            })
            .await?;
        let exports_removed = match reply {
            Reply::Removed { exports } => exports,
            _ => 0,
        };
        tracing::warn!(operator = name, %cluster, exports_removed, "cluster evicted");
        Ok(Response::new(v1::EvictReply {
            log_index,
            exports_removed,
        }))
    }

    async fn set_grant(
        &self,
        request: Request<v1::SetGrantRequest>,
    ) -> Result<Response<v1::Committed>, Status> {
        operator(&request)?;
        let request = request.into_inner();
        let key = service_key("key", request.key.as_ref()).map_err(invalid)?;
        let exporter = cluster_id("exporter", &request.exporter)?;
        let importers = clusters("importers", &request.importers)?;
        let importers = (!request.clear).then_some(importers);
        self.broker
            .commit(Command::SetGrant {
                key,
                exporter,
                importers,
            })
            .await
            .map(Response::new)
    }

    async fn set_reservation(
        &self,
        request: Request<v1::SetReservationRequest>,
    ) -> Result<Response<v1::Committed>, Status> {
        operator(&request)?;
        let request = request.into_inner();
        let namespace = Namespace::parse(&request.namespace)
            .map_err(|error| Status::invalid_argument(format!("field namespace: {error}")))?;
        let named = clusters("clusters", &request.clusters)?;
        let clusters = (!request.clear).then_some(named);
        self.broker
            .commit(Command::Reserve { namespace, clusters })
            .await
            .map(Response::new)
    }

    async fn group_status(
        &self,
        request: Request<v1::GroupStatusRequest>,
    ) -> Result<Response<v1::GroupStatusReply>, Status> {
        operator(&request)?;
        let metrics = self.broker.group.metrics();
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let leader = metrics.current_leader.unwrap_or_default();
        let matched = |id: u64| {
            let known = metrics
                .replication
                .as_ref()
                .and_then(|all| all.get(&id).copied().flatten());
            known.map_or(0, |log_id| log_id.index)
        };
        let reply = self.broker.read(|state| v1::GroupStatusReply {
            answered_by: self.broker.group.id(),
            term: metrics.current_term,
            applied: state.applied,
            incarnation: state.incarnation,
            trust_domain: state
                .trust
                .as_ref()
                .map(|trust| trust.trust_domain.to_string())
                .unwrap_or_default(),
            brokers: state
                .brokers
                .active
                .iter()
                .map(|(&id, addresses)| v1::BrokerStatus {
                    id,
                    api_address: addresses.api.to_string(),
                    peer_address: addresses.peer.to_string(),
                    voter: voters.contains(&id),
                    leader: id == leader,
                    matched_log_index: matched(id),
                })
                .collect(),
            leader,
            millis_since_quorum_ack: metrics.millis_since_quorum_ack.unwrap_or_default(),
            unix_ms: self.broker.unix_ms(),
        });
        Ok(Response::new(reply))
    }

    async fn add_broker(
        &self,
        request: Request<v1::AddBrokerRequest>,
    ) -> Result<Response<v1::Committed>, Status> {
        operator(&request)?;
        let request = request.into_inner();
        let parse = |field: &str, text: &str| {
            text.parse()
                .map_err(|_| Status::invalid_argument(format!("field {field}: '{text}' is no IP:PORT")))
        };
        let addresses = BrokerAddresses {
            api: parse("api_address", &request.api_address)?,
            peer: parse("peer_address", &request.peer_address)?,
        };
        self.broker
            .commit(Command::AddBroker {
                id: request.id,
                addresses,
            })
            .await
            .map(Response::new)
    }

    async fn remove_broker(
        &self,
        request: Request<v1::RemoveBrokerRequest>,
    ) -> Result<Response<v1::Committed>, Status> {
        operator(&request)?;
        self.broker
            .commit(Command::RemoveBroker {
                id: request.get_ref().id,
            })
            .await
            .map(Response::new)
    }

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Chunks>, Status> {
        let name = operator(&request)?;
        self.catch_up().await?;
        let state = self.broker.read(Clone::clone);
        let taken_unix_ms = self.broker.unix_ms();
        let sealing =
            tokio::task::spawn_blocking(move || restore::seal_backup(taken_unix_ms, &encode_state(&state)));
        let sealed = Bytes::from(
            sealing
                .await
                .map_err(|error| Status::internal(error.to_string()))?,
        );
        tracing::info!(operator = name, bytes = sealed.len(), "back-up taken");
        let (sender, receiver) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            for at in (0..sealed.len()).step_by(CHUNK_BYTES) {
                let data = sealed.slice(at..sealed.len().min(at + CHUNK_BYTES));
                // The caller went away.
                if sender.send(Ok(v1::BackupChunk { data })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn rotate_root(
        &self,
        request: Request<v1::RotateRootRequest>,
    ) -> Result<Response<v1::RotateRootReply>, Status> {
        let name = operator(&request)?;
        let request = request.into_inner();
        let step = Step::try_from(request.step)
            .map_err(|_| Status::invalid_argument(format!("field step: {} is unknown", request.step)))?;
        self.catch_up().await?;
        let step = match step {
            Step::Status => return self.rotation().map(Response::new),
            Step::Stage => {
                let successor = self
                    .broker
                    .authority
                    .successor(&self.broker.trust()?)
                    .map_err(authority_status)?;
                RotationStep::Stage(successor)
            }
            Step::Switch => RotationStep::Switch,
            Step::Drop => RotationStep::Drop,
        };
        self.broker
            .decide(Command::Rotate {
                step,
                force: request.force,
            })
            .await?;
        let reply = self.rotation()?;
        tracing::warn!(
            operator = name,
            stage = reply.stage,
            force = request.force,
            "root rotation advanced"
        );
        Ok(Response::new(reply))
    }

    async fn issue_certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Result<Response<v1::IssueCertificateReply>, Status> {
        let name = operator(&request)?;
        let request = request.into_inner();
        self.catch_up().await?;
        let (id, ttl) = self.subject(&request.subject)?;
        let trust = self.broker.trust()?;
        let certificate = self
            .broker
            .authority
            .sign_leaf(&trust, &id, &request.csr, ttl)
            .map_err(authority_status)?;
        tracing::info!(operator = name, subject = %id, "certificate issued");
        let certificate = Bytes::copy_from_slice(&certificate);
        Ok(Response::new(v1::IssueCertificateReply {
            certificate,
            trust: Some(bundle(&trust)),
        }))
    }

    async fn start_drill(
        &self,
        request: Request<v1::StartDrillRequest>,
    ) -> Result<Response<v1::StartDrillReply>, Status> {
        let name = operator(&request)?;
        let request = request.into_inner();
        let drill = request
            .drill
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("field drill: is missing"))?;
        let mut drill = Drill::try_from(drill).map_err(invalid)?;
        let command = Command::StartDrill {
            drill: Box::new(drill.clone()),
            force: request.force,
        };
        let (reply, _) = self.broker.decide(command).await?;
        let Reply::DrillStarted { id } = reply else {
            return Err(Status::internal(format!(
                "the leader answered {reply:?} to a drill; upgrade the older broker"
            )));
        };
        drill.id = id;
        tracing::warn!(operator = name, drill = id.0, kind = drill.kind.as_str(), target = %drill.target, "drill started");
        Ok(Response::new(v1::StartDrillReply {
            drill: Some((&drill).into()),
        }))
    }

    async fn stop_drill(
        &self,
        request: Request<v1::StopDrillRequest>,
    ) -> Result<Response<v1::Committed>, Status> {
        operator(&request)?;
        self.broker
            .commit(Command::StopDrill {
                id: DrillId(request.get_ref().drill),
            })
            .await
            .map(Response::new)
    }

    async fn drill_report(
        &self,
        request: Request<v1::DrillReportRequest>,
    ) -> Result<Response<v1::DrillReportReply>, Status> {
        operator(&request)?;
        let request = request.into_inner();
        let id = DrillId(request.drill);
        self.catch_up().await?;
        let mut applied = self.broker.group.replica().applied();
        let find = || {
            self.broker.read(|state| {
                let (drill, report) = state.drills.find(id)?;
                Some((v1::Drill::from(drill), report.cloned()))
            })
        };
        let wait = Duration::from_millis(request.wait_ms).min(REPORT_WAIT_MAX);
        // Neither the drain nor the limit is an error: the answer is then that there is no report yet.
        let has_report = |_: &u64| find().is_none_or(|(_, report)| report.is_some());
        tokio::select! {
            () = self.broker.shutdown.drain() => {}
            () = tokio::time::sleep(wait) => {}
            _ = applied.wait_for(has_report) => {}
        }
        let (drill, report) = find().ok_or_else(|| {
            Status::not_found(format!(
                "there is no drill {}; the last {} are remembered",
                id.0,
                crate::bounds::DRILLS_KEPT
            ))
        })?;
        let report = report.map(v1::DrillReport::decode).transpose();
        let report = report
            .map_err(|error| Status::data_loss(format!("the stored report does not decode: {error}")))?;
        Ok(Response::new(v1::DrillReportReply {
            report,
            drill: Some(drill),
        }))
    }

    async fn view(&self, request: Request<v1::ViewRequest>) -> Result<Response<Events>, Status> {
        operator(&request)?;
        if !request.get_ref().stale {
            self.catch_up().await?;
        }
        Ok(Response::new(everything(&self.broker)))
    }
}

fn clusters(field: &str, texts: &[String]) -> Result<BTreeSet<tombolo_clusterset::ClusterId>, Status> {
    texts.iter().map(|text| cluster_id(field, text)).collect()
}
