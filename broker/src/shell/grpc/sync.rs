//! Sync: publish what we offer, watch what all offer.

use std::sync::Arc;

use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_clusterset::DrillId;
use tombolo_trust::Subject;
use tombolo_wire::v1;
use tombolo_wire::v1::sync_server::Sync;
use tonic::{Request, Response, Status, Streaming};

use super::publish::publish;
use super::watch::{Watcher, watch};
use super::{Broker, agent, caller, check_signer, check_version, denied, refused, unauthenticated};
use crate::bounds::DRILL_REPORT_MAX_BYTES;
use crate::command::Command;
use crate::state::Refusal;

/// The service.
#[derive(Debug, Clone)]
pub struct SyncService {
    broker: Arc<Broker>,
}

impl SyncService {
    /// Serves for `broker`.
    #[must_use]
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }
}

#[tonic::async_trait]
impl Sync for SyncService {
    type PublishStream = ReceiverStream<Result<v1::PublishReply, Status>>;
    type WatchStream = ReceiverStream<Result<v1::WatchEvent, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let cluster = agent(&self.broker, &request)?;
        publish(Arc::clone(&self.broker), cluster, request.into_inner()).map(Response::new)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let id = caller(&request).ok_or_else(unauthenticated)?;
        check_signer(&self.broker, &request)?;
        let watcher = match id.subject() {
            Subject::Role { cluster, .. } => Watcher::Member(cluster.clone()),
            Subject::Operator(_) => Watcher::Operator,
            _ => {
                return Err(denied(
                    &id,
                    "a cluster's agent, gateway or DNS server, or an operator",
                ));
            }
        };
        let request = request.into_inner();
        check_version(request.protocol_version)?;
        watch(&self.broker, watcher, request.incarnation, request.revision).map(Response::new)
    }

    async fn report_drill(
        &self,
        request: Request<v1::DrillReport>,
    ) -> Result<Response<v1::ReportDrillReply>, Status> {
        let cluster = agent(&self.broker, &request)?;
        let report = request.into_inner();
        let (drill, bytes) = (report.drill, report.encoded_len());
        if bytes > DRILL_REPORT_MAX_BYTES {
            let refusal = Refusal::DrillReportTooLarge { drill, bytes };
            return Err(refused(refusal.class(), refusal.to_string()));
        }
        let command = Command::ReportDrill {
            cluster,
            drill: DrillId(drill),
            report: report.encode_to_vec().into(),
        };
        self.broker.decide(command).await?;
        Ok(Response::new(v1::ReportDrillReply {}))
    }
}
