//! What the agent does for its cluster beside the two streams: renew certificates, pass on drill reports.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tombolo_daemon::backoff::Backoff;
use tombolo_daemon::seam::Seams;
use tombolo_trust::{CertificateDer, PrivateKeyDer, Validity, new_key_and_csr};
use tombolo_wire::v1;
use tombolo_wire::v1::membership_client::MembershipClient;
use tombolo_wire::v1::sync_client::SyncClient;
use tombolo_wire::version::PROTOCOL_VERSION;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::broker_channel::MAX_MESSAGE;
use super::identity::{self, ClusterIdentity};
use super::sync::TrustAck;

/// Longest sleep before clocks are looked at again: wall clocks jump, and a laptop or a VM may have been asleep.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Delays between tries of one call.
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Renewals after a change of trust are spread over this, since all clusters hear of it at once.
const ROTATION_SPREAD: Duration = Duration::from_secs(2);

/// Time for one call: an election may lie in between.
const CALL_TIME: Duration = Duration::from_secs(15);

/// A report is given up after this: the broker has closed the drill by then.
const REPORT_TIME: Duration = Duration::from_secs(15 * 60);

/// Keeps the agent's own leaf fresh: at half its life, and when the intermediate changed (which replaces it too).
pub async fn renew_own_leaf(identity: Arc<ClusterIdentity>, seams: Seams) {
    let mut rng = seams.entropy.rng();
    loop {
        let random = rng.random();
        let validity = identity.certs().load().validity();
        wait_until(|| validity.renew_in(seams.clock.wall(), random)).await;
        match identity.renew_own_leaf() {
            Ok(()) => tracing::info!("renewed the agent's own certificate"),
            Err(error) => {
                tracing::error!(%error, "cannot renew the agent's own certificate");
                sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// Keeps the cluster's intermediate fresh: at half its life, and when a root rotation asks for it.
pub async fn renew_intermediate(
    identity: Arc<ClusterIdentity>,
    channel: watch::Receiver<Option<Channel>>,
    told: Arc<watch::Sender<TrustAck>>,
    seams: Seams,
) {
    let mut trust = told.subscribe();
    let mut rng = seams.entropy.rng();
    let mut backoff = Backoff::full(RETRY_BASE, RETRY_MAX);
    loop {
        let random = rng.random();
        let validity = identity.validity();
        let remaining = |now: SystemTime| match &validity {
            Ok(validity) => Validity::renew_in(validity, now, random),
            Err(_) => Duration::ZERO,
        };
        tokio::select! {
            () = wait_until(|| remaining(seams.clock.wall())) => {}
            changed = trust.changed() => {
                if changed.is_err() {
                    return;
                }
                trust.mark_unchanged();
                if identity.is_of_newest_root() {
                    continue;
                }
                sleep(ROTATION_SPREAD.mul_f64(rng.random())).await;
            }
        }
        let mut wanted = None;
        loop {
            match renew(&identity, channel.clone(), &mut wanted).await {
                Ok(()) => {
                    backoff.reset();
                    tracing::info!("renewed the cluster's intermediate");
                    tell_lagging(&identity, &told);
                    break;
                }
                Err(error) => {
                    let left = identity
                        .validity()
                        .map(|validity| validity.remaining(seams.clock.wall()))
                        .unwrap_or_default();
                    tracing::warn!(%error, valid_for_s = left.as_secs(), "cannot renew the cluster's intermediate; trying again");
                    sleep(backoff.next(&mut rng)).await;
                }
            }
        }
    }
}

/// Keeps the acknowledgement of the trust bundle true: the broker counts a rotation as finished here only when nothing lags.
pub fn tell_lagging(identity: &ClusterIdentity, told: &watch::Sender<TrustAck>) {
    let lagging = identity.lagging();
    told.send_if_modified(|ack| std::mem::replace(&mut ack.lagging, lagging.clone()) != lagging);
}

/// Looks at intervals whether leaves of an old root have ended by themselves.
pub async fn watch_lagging(identity: Arc<ClusterIdentity>, told: Arc<watch::Sender<TrustAck>>) {
    loop {
        sleep(LOOK_AGAIN).await;
        tell_lagging(&identity, &told);
    }
}

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("the broker: {}", .0.message())]
    Broker(Status),
    #[error("no answer within {} s", CALL_TIME.as_secs())]
    TimedOut,
    #[error(transparent)]
    Issue(#[from] tombolo_trust::IssueError),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("the agent ends")]
    Ending,
}

/// One try. `wanted`, a key and the request for its certificate, is made by the first and used by all: a broker may have signed it although its answer was lost, and it
/// keeps only so many keys of a cluster.
async fn renew(
    identity: &ClusterIdentity,
    channel: watch::Receiver<Option<Channel>>,
    wanted: &mut Option<(PrivateKeyDer<'static>, Bytes)>,
) -> Result<(), RenewError> {
    let channel = connected(channel).await.ok_or(RenewError::Ending)?;
    let (key, csr) = match wanted {
        Some(made) => made,
        None => {
            let (key, csr) = new_key_and_csr()?;
            wanted.insert((key, csr.to_vec().into()))
        }
    };
    let mut client = MembershipClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let request = v1::RenewRequest {
        protocol_version: PROTOCOL_VERSION,
        csr: csr.clone(),
    };
    let call = timeout(CALL_TIME, client.renew(request))
        .await
        .map_err(|_| RenewError::TimedOut)?;
    let reply = call.map_err(RenewError::Broker)?.into_inner();
    identity.take_intermediate(CertificateDer::from(reply.intermediate.to_vec()), key)?;
    Ok(())
}

/// Passes drill reports on to a broker, each until it is taken or refused for good.
pub async fn report_drills(
    mut reports: mpsc::Receiver<v1::DrillReport>,
    channel: watch::Receiver<Option<Channel>>,
    seams: Seams,
) {
    let mut rng = seams.entropy.rng();
    while let Some(report) = reports.recv().await {
        let drill = report.drill;
        let mut backoff = Backoff::full(RETRY_BASE, RETRY_MAX);
        let until_taken = async {
            loop {
                let Some(connected) = connected(channel.clone()).await else {
                    return;
                };
                let mut client = SyncClient::new(connected);
                match timeout(CALL_TIME, client.report_drill(report.clone())).await {
                    Ok(Ok(_)) => return tracing::info!(drill, "the broker has the drill's report"),
                    Ok(Err(status)) if is_final(status.code()) => {
                        return tracing::error!(
                            drill,
                            reason = status.message(),
                            "the broker refuses the drill's report"
                        );
                    }
                    Ok(Err(status)) => tracing::warn!(
                        drill,
                        reason = status.message(),
                        "cannot pass on the drill's report; trying again"
                    ),
                    Err(_) => tracing::warn!(drill, "no answer to the drill's report; trying again"),
                }
                sleep(backoff.next(&mut rng)).await;
            }
        };
        if timeout(REPORT_TIME, until_taken).await.is_err() {
            tracing::error!(drill, "gave up passing on the drill's report: no broker took it");
        }
    }
}

/// Whether trying again cannot help.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::AlreadyExists
    )
}

/// The connection to a broker, as soon as there is one; None when the session ended.
async fn connected(mut channel: watch::Receiver<Option<Channel>>) -> Option<Channel> {
    channel.wait_for(Option::is_some).await.ok()?.clone()
}

/// Sleeps until `remaining` says zero.
async fn wait_until(remaining: impl Fn() -> Duration) {
    loop {
        let left = remaining();
        if left.is_zero() {
            return;
        }
        sleep(left.min(LOOK_AGAIN)).await;
    }
}
