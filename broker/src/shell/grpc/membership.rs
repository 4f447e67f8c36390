//! Membership: becoming, staying and ceasing to be a member.

use std::sync::Arc;

use bytes::Bytes;
use tombolo_clusterset::ClusterId;
use tombolo_trust::{SecretHash, TokenId};
use tombolo_wire::v1;
use tombolo_wire::v1::membership_server::Membership;
use tonic::{Request, Response, Status};

use super::{
    Broker, agent, authority_status, broker_addresses, bundle, check_version, cluster_id, description,
    group_status, refused,
};
use crate::command::{Command, Join, Reply};
use crate::state::{Admission, Refusal};

/// Largest signing request: a P-256 one has about 250 bytes.
const CSR_MAX: usize = 4096;

/// The service.
#[derive(Debug, Clone)]
pub struct MembershipService {
    broker: Arc<Broker>,
}

impl MembershipService {
    /// Serves for `broker`.
    #[must_use]
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }

    /// Whether who asks holds the token: the root signs for nobody else. A refusal is believed as in [`Self::admit`].
    async fn check_holder(&self, token: TokenId, hash: &[u8; 32], cluster: &ClusterId) -> Result<(), Status> {
        let check = || {
            self.broker
                .read(|state| state.check_token_holder(token, hash, cluster).map(drop))
        };
        if check().is_ok() {
            return Ok(());
        }
        self.broker.group.catch_up().await.map_err(group_status)?;
        check().map_err(|refusal| refused(refusal.class(), refusal.to_string()))
    }

    /// Whether a join may go on. A refusal is believed only after this broker has caught up: the token may be newer than
    /// what it has applied.
    async fn admit(&self, join: &Join) -> Result<Admission, Status> {
        if let Ok(admission) = self.check(join) {
            return Ok(admission);
        }
        self.broker.group.catch_up().await.map_err(group_status)?;
        self.check(join)
            .map_err(|refusal| refused(refusal.class(), refusal.to_string()))
    }

    fn check(&self, join: &Join) -> Result<Admission, Refusal> {
        let wall = self.broker.unix_ms();
        self.broker
            .read(|state| state.check_join(join, state.clock_ms.max(wall)))
    }
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let request = request.into_inner();
        check_version(request.protocol_version)?;
        let cluster = cluster_id("cluster", &request.cluster)?;
        let token = TokenId::parse(&request.token_id).ok_or_else(|| {
            Status::invalid_argument("field token_id: not 16 hexadecimal digits; copy the whole token again")
        })?;
        let description = description(
            request.locality.as_ref(),
            &request.network,
            &request.gateways,
            request.unix_ms,
        )?;
        check_csr(&request.csr)?;
        let hash = *SecretHash::of(&token, &request.token_secret).as_bytes();
        self.check_holder(token, &hash, &cluster).await?;
        let trust = self.broker.trust()?;
        let issued = self
            .broker
            .authority
            .sign_intermediate(&trust, &cluster, &request.csr)
            .map_err(authority_status)?;
        let replace = request.replace;
        let join = Join {
            token,
            hash,
            cluster: cluster.clone(),
            description,
            replace,
            issued,
        };
        // Nobody without a valid token writes to the log.
        self.admit(&join).await?;
        let intermediate = certificate(self.broker.decide(Command::Join(Box::new(join))).await?.0)?;
        tracing::info!(%cluster, %token, replace, "cluster joined");
        let trust = bundle(&self.broker.trust()?);
        let (brokers, incarnation) = self
            .broker
            .read(|state| (broker_addresses(state), state.incarnation));
        Ok(Response::new(v1::JoinReply {
            intermediate,
            trust: Some(trust),
            brokers,
            incarnation,
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
        let cluster = agent(&self.broker, &request)?;
        let request = request.into_inner();
        check_version(request.protocol_version)?;
        check_csr(&request.csr)?;
        let trust = self.broker.trust()?;
        let issued = self
            .broker
            .authority
            .sign_intermediate(&trust, &cluster, &request.csr)
            .map_err(authority_status)?;
        let intermediate = certificate(self.broker.decide(Command::Renew { cluster, issued }).await?.0)?;
        let trust = bundle(&self.broker.trust()?);
        let brokers = self.broker.read(broker_addresses);
        Ok(Response::new(v1::RenewReply {
            intermediate,
            trust: Some(trust),
            brokers,
        }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        let cluster = agent(&self.broker, &request)?;
        let (_, log_index) = self
            .broker
            .decide(Command::Leave {
                cluster: cluster.clone(),
            })
            .await?;
        tracing::info!(%cluster, "cluster left");
        Ok(Response::new(v1::LeaveReply { log_index }))
    }
}

fn check_csr(csr: &Bytes) -> Result<(), Status> {
    if csr.is_empty() || csr.len() > CSR_MAX {
        return Err(Status::invalid_argument(format!(
            "field csr: has {} bytes, not 1 to {CSR_MAX}",
            csr.len()
        )));
    }
    Ok(())
}

fn certificate(reply: Reply) -> Result<Bytes, Status> {
    match reply {
        Reply::Issued { certificate } => Ok(certificate),
        other => Err(Status::internal(format!(
            "the leader answered {other:?} to a signing request; upgrade the older broker"
        ))),
    }
}
