//! The session with a broker: the publish and the watch stream over one connection; at its end the next broker, at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tombolo_clusterset::{Export, ServiceKey};
use tombolo_daemon::backoff::Backoff;
use tombolo_daemon::seam::Seams;
use tombolo_trust::{Permit, client_config};
use tombolo_wire::local::{ClusterSite, RunningDrill};
use tombolo_wire::v1;
use tombolo_wire::v1::publish_reply::Reply;
use tombolo_wire::v1::publish_request::Request;
use tombolo_wire::v1::sync_client::SyncClient;
use tombolo_wire::version::PROTOCOL_VERSION;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::broker_channel::{ALPN, ConnectError, MAX_MESSAGE, connect};
use super::identity::{ClusterIdentity, unix_ms};
use super::metrics::{Metrics, gauge};
use crate::publish::{Grant, Publisher, request};

/// Delays between rounds over all brokers. The longest keeps 250 clusters below 250 connections a second when a group comes
/// back, and an agent hears of it within two seconds.
const ROUND_BASE: Duration = Duration::from_millis(50);
const ROUND_MAX: Duration = Duration::from_secs(2);

/// A session that lasted this long was a success: the delays start over.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// Time for a broker to grant the publish stream and to open the watch: it may have to ask its leader, but not to wait for an
/// election.
const OPEN_TIME: Duration = Duration::from_secs(5);

/// Messages to the broker that wait for the connection.
const OUTBOX: usize = 64;

/// A lease is renewed this many times within its term (the protocol asks for three at least).
const RENEWALS_PER_TERM: u32 = 4;

/// Renewals are never closer than this, whatever term a broker grants.
const RENEW_MIN: Duration = Duration::from_millis(100);

/// A broker that hears no quorum for this many lease terms is left: one passes in an election, and another broker may well be
/// on the side of the quorum.
const STALE_TERMS: u32 = 2;

/// How often a session that a drill keeps from opening looks whether it still does.
const SILENCE_CHECK: Duration = Duration::from_millis(100);

/// What the session tells the agent.
#[derive(Debug)]
pub enum FromBroker {
    /// A watch is about to begin; the answer is where to resume.
    Opening {
        /// Which broker.
        broker: SocketAddr,
        /// (incarnation, revision).
        resume: oneshot::Sender<(u64, u64)>,
    },
    /// An event of the watch.
    Event(Box<v1::WatchEvent>),
    /// The watch is gone.
    Lost,
}

/// The trust that this cluster uses, as the operator must know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustAck {
    /// Revision in use; 0 for none.
    pub revision: u64,
    /// What still uses an older root; empty when nothing does.
    pub lagging: String,
}

/// What the offers are; None before the manifests were read.
pub type Wanted = Option<Arc<BTreeMap<ServiceKey, Arc<Export>>>>;

/// The session's task.
#[derive(Debug)]
pub struct Session {
    /// Network, clocks, entropy.
    pub seams: Seams,
    /// Who we are.
    pub identity: Arc<ClusterIdentity>,
    /// Where we are.
    pub site: ClusterSite,
    /// Where our gateways are reached.
    pub gateways: Vec<SocketAddr>,
    /// What was published, shared with Inspect.
    pub publisher: Arc<Mutex<Publisher>>,
    /// To the agent.
    pub to_agent: mpsc::Sender<FromBroker>,
    /// What to publish.
    pub wanted: watch::Receiver<Wanted>,
    /// Which brokers there are.
    pub brokers: watch::Receiver<Vec<SocketAddr>>,
    /// The drill that runs.
    pub drill: watch::Receiver<Option<RunningDrill>>,
    /// What to acknowledge.
    pub trust_ack: watch::Receiver<TrustAck>,
    /// Incarnation of the clusterset, as the watch last told.
    pub incarnation: watch::Receiver<u64>,
    /// Told when the agent cannot follow this broker's watch.
    pub abandon: Arc<Notify>,
    /// The connection in use, for calls beside the two streams.
    pub channel: watch::Sender<Option<Channel>>,
    /// Counters.
    pub metrics: Metrics,
    /// Set once a newer agent of this cluster took over publishing.
    pub superseded: watch::Sender<bool>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot connect: {0}")]
    Connect(#[from] ConnectError),
    #[error("{stream} stream: {status}", status = .status.message())]
    Stream { stream: &'static str, status: Status },
    #[error("the broker closed the {0} stream")]
    Closed(&'static str),
    #[error("the {0} stream was not opened within {open} s", open = OPEN_TIME.as_secs())]
    Slow(&'static str),
    #[error("the agent does not follow this broker's watch")]
    NotFollowed,
    #[error("it confirmed no lease for {} ms, a whole lease term; it may be cut off from its group", .0.as_millis())]
    NotRenewed(Duration),
    #[error("it has not heard from a quorum for {} ms", .0.as_millis())]
    Stale(Duration),
}

impl Session {
    /// Runs until the agent is gone.
    pub async fn run(mut self) {
        let mut rng = self.seams.entropy.rng();
        let mut backoff = Backoff::full(ROUND_BASE, ROUND_MAX);
        // Before the manifests are read there is nothing to say, and an empty full state would withdraw every export.
        if self.wanted.wait_for(Option::is_some).await.is_err() {
            return;
        }
        while !self.to_agent.is_closed() {
            let mut order = self.brokers.borrow_and_update().clone();
            order.shuffle(&mut rng);
            for broker in order {
                let began = self.seams.clock.now();
                let ended = self.session(broker).await;
                self.channel.send_replace(None);
                self.publisher.lock().lost();
                if self.to_agent.send(FromBroker::Lost).await.is_err() {
                    return;
                }
                self.metrics.broker_failures.inc();
                if self.seams.clock.now().duration_since(began) >= GOOD_SESSION {
                    backoff.reset();
                    tracing::warn!(%broker, %ended, "lost the broker; trying the next");
                } else {
                    tracing::info!(%broker, %ended, "cannot use this broker; trying the next");
                }
            }
            sleep(backoff.next(&mut rng)).await;
        }
    }

    async fn session(&mut self, broker: SocketAddr) -> Ended {
        let config = client_config(
            self.identity.trust(),
            self.identity.certs(),
            Permit::AnyBroker,
            ALPN,
        );
        let channel = match connect(&self.seams, config, broker).await {
            Ok(connected) => connected.channel,
            Err(error) => return error.into(),
        };
        self.metrics.broker_sessions.inc();
        self.channel.send_replace(Some(channel.clone()));
        let client = SyncClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let publisher = Arc::clone(&self.publisher);
        let stale_after = move || publisher.lock().lease_term().unwrap_or(OPEN_TIME) * STALE_TERMS;
        let watching = watch_stream(client.clone(), broker, self.to_agent.clone(), stale_after);
        let abandon = Arc::clone(&self.abandon);
        let publishing = self.publish_until_superseded(client);
        tokio::select! {
            ended = watching => ended,
            ended = publishing => ended,
            () = abandon.notified() => Ended::NotFollowed,
        }
    }

    /// An agent that was superseded watches on, since its cluster lives on; it only speaks no more.
    async fn publish_until_superseded(&mut self, client: SyncClient<Channel>) -> Ended {
        if !*self.superseded.borrow() {
            let ended = self.publish(client).await;
            let Ended::Stream { status, .. } = &ended else {
                return ended;
            };
            if !is_superseded(status) {
                return ended;
            }
            if self.clusterset_was_restored().await {
                tracing::warn!("the clusterset was restored from a back-up; asking for a new publish epoch");
                self.publisher.lock().forget_epoch();
                return ended;
            }
            tracing::error!(
                reason = status.message(),
                "another agent publishes for this cluster; this one stops publishing until it is restarted"
            );
            self.publisher.lock().forget_epoch();
            self.superseded.send_replace(true);
        }
        std::future::pending().await
    }

    /// Whether the epoch held is of an earlier incarnation, which the watch of this same session tells within a moment.
    async fn clusterset_was_restored(&mut self) -> bool {
        let held = self.publisher.lock().incarnation();
        let other = self.incarnation.wait_for(|current| *current != held);
        matches!(timeout(OPEN_TIME, other).await, Ok(Ok(_)))
    }

    async fn publish(&mut self, mut client: SyncClient<Channel>) -> Ended {
        let failed = |status| Ended::Stream {
            stream: "publish",
            status,
        };
        let (outbox, queue) = mpsc::channel(OUTBOX);
        // A stream that opens is a sign of life, and a drill may forbid any.
        while self.is_silenced() {
            sleep(SILENCE_CHECK).await;
        }
        {
            // Wanted before it is granted: an empty full state would withdraw every export.
            let wanted = self.wanted.borrow_and_update().clone();
            let mut publisher = self.publisher.lock();
            if let Some(wanted) = wanted {
                publisher.want(&wanted);
            }
            publisher.open();
        }
        let open = v1::PublishOpen {
            protocol_version: PROTOCOL_VERSION,
            locality: Some((&self.site.locality).into()),
            network: self.site.network.to_string(),
            gateways: self.gateways.iter().map(ToString::to_string).collect(),
            epoch: self.publisher.lock().epoch(),
            unix_ms: unix_ms(self.seams.clock.wall()),
        };
        if outbox.send(request(Request::Open(open))).await.is_err() {
            return Ended::Closed("publish");
        }
        let mut replies = match timeout(OPEN_TIME, client.publish(ReceiverStream::new(queue))).await {
            Ok(Ok(replies)) => replies.into_inner(),
            Ok(Err(status)) => return failed(status),
            Err(_) => return Ended::Slow("publish"),
        };
        let term = match timeout(OPEN_TIME, replies.message()).await {
            Ok(Ok(Some(v1::PublishReply {
                reply: Some(Reply::Granted(granted)),
            }))) => self.granted(&granted),
            Ok(Ok(Some(_))) => return failed(Status::internal("the first reply is no grant")),
            Ok(Ok(None)) => return Ended::Closed("publish"),
            Ok(Err(status)) => return failed(status),
            Err(_) => return Ended::Slow("publish"),
        };
        let every = (term / RENEWALS_PER_TERM).max(RENEW_MIN);
        let mut renew_at = self.seams.clock.now();
        let mut renewed_at = renew_at;
        self.trust_ack.mark_changed();
        loop {
            let has_room = self.pump(&outbox);
            tokio::select! {
                reply = replies.message() => match reply {
                    Ok(Some(reply)) => {
                        if matches!(reply.reply, Some(Reply::LeaseRenewed(_))) {
                            renewed_at = self.seams.clock.now();
                        }
                        self.take_reply(reply);
                    }
                    Ok(None) => return Ended::Closed("publish"),
                    Err(status) => return failed(status),
                },
                Ok(()) = self.wanted.changed() => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    if let Some(wanted) = wanted {
                        self.publisher.lock().want(&wanted);
                    }
                }
                () = sleep_until(renew_at) => {
                    let now = self.seams.clock.now();
                    renew_at = now + every;
                    if self.is_silenced() {
                        // Who asks for nothing is owed nothing.
                        renewed_at = now;
                    } else if now.duration_since(renewed_at) >= term.max(every) {
                        return Ended::NotRenewed(now.duration_since(renewed_at));
                    } else {
                        let unix_ms = unix_ms(self.seams.clock.wall());
                        // A full outbox means that the broker is slow, and what waits there is a sign of life too.
                        let _ = outbox.try_send(request(Request::RenewLease(v1::PublishRenewLease { unix_ms })));
                    }
                }
                Ok(()) = self.trust_ack.changed() => {
                    let TrustAck { revision, lagging } = self.trust_ack.borrow_and_update().clone();
                    let ack = request(Request::TrustAck(v1::PublishTrustAck { revision, lagging }));
                    if revision != 0 {
                        // A broker that reads nothing must not hold up the look at the lease.
                        match timeout(term, outbox.send(ack)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(_)) => return Ended::Closed("publish"),
                            Err(_) => return Ended::NotRenewed(term),
                        }
                    }
                }
                permit = outbox.reserve(), if !has_room => {
                    if permit.is_err() {
                        return Ended::Closed("publish");
                    }
                }
            }
        }
    }

    /// Sends what the publisher has to say; false when the outbox is full before that.
    fn pump(&self, outbox: &mpsc::Sender<v1::PublishRequest>) -> bool {
        let mut publisher = self.publisher.lock();
        loop {
            let Ok(permit) = outbox.try_reserve() else {
                return outbox.is_closed();
            };
            match publisher.next_message() {
                Some(message) => permit.send(message),
                None => return true,
            }
        }
    }

    fn granted(&self, granted: &v1::PublishGranted) -> Duration {
        self.publisher.lock().granted(Grant {
            epoch: granted.epoch,
            lease_term_ms: granted.lease_term_ms,
            incarnation: granted.incarnation,
        });
        self.metrics.lease_term_ms.set(gauge(granted.lease_term_ms));
        tracing::info!(
            epoch = granted.epoch,
            lease_term_ms = granted.lease_term_ms,
            "the broker granted the publish stream"
        );
        Duration::from_millis(granted.lease_term_ms)
    }

    fn take_reply(&self, reply: v1::PublishReply) {
        match reply.reply {
            Some(Reply::Accepted(accepted)) => {
                self.metrics.publish_accepted.inc();
                self.publisher
                    .lock()
                    .accepted(accepted.sequence, accepted.log_index);
            }
            Some(Reply::Rejected(rejected)) => {
                self.metrics.publish_rejected.inc();
                let service = self
                    .publisher
                    .lock()
                    .rejected(rejected.sequence, &rejected.reason);
                let service = service.map(|key| key.to_string());
                tracing::warn!(service, reason = rejected.reason, "the broker refuses an export");
            }
            Some(Reply::LeaseRenewed(_)) => {
                self.metrics.lease_renewals.inc();
                self.metrics
                    .lease_renewed_unix_ms
                    .set(gauge(unix_ms(self.seams.clock.wall())));
            }
            Some(Reply::Granted(granted)) => {
                tracing::debug!(
                    epoch = granted.epoch,
                    "a second grant on one stream says nothing new"
                );
            }
            None => tracing::debug!("a reply of a kind that this version does not know"),
        }
    }

    /// Whether a drill silences this cluster now. It ends with the drill's own time, whoever died.
    fn is_silenced(&self) -> bool {
        let now = self.seams.clock.now();
        let running = self.drill.borrow();
        running
            .as_ref()
            .is_some_and(|running| running.drill.silences(&self.site.cluster, running.age(now)))
    }
}

/// Of the refusals that end a stream only this one is for good: a wrong clock, for example, can be set right.
fn is_superseded(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("superseded")
}

async fn watch_stream(
    mut client: SyncClient<Channel>,
    broker: SocketAddr,
    to_agent: mpsc::Sender<FromBroker>,
    stale_after: impl Fn() -> Duration,
) -> Ended {
    let (resume, position) = oneshot::channel();
    if to_agent
        .send(FromBroker::Opening { broker, resume })
        .await
        .is_err()
    {
        return Ended::NotFollowed;
    }
    let Ok((incarnation, revision)) = position.await else {
        return Ended::NotFollowed;
    };
    let wanted = v1::WatchRequest {
        protocol_version: PROTOCOL_VERSION,
        incarnation,
        revision,
    };
    let mut events = match timeout(OPEN_TIME, client.watch(wanted)).await {
        Ok(Ok(events)) => events.into_inner(),
        Ok(Err(status)) => {
            return Ended::Stream {
                stream: "watch",
                status,
            };
        }
        Err(_) => return Ended::Slow("watch"),
    };
    let mut stale_since = None;
    loop {
        let next = tokio::select! {
            next = events.message() => next,
            () = stale(stale_since, &stale_after) => return Ended::Stale(stale_after()),
        };
        match next {
            Ok(Some(event)) => {
                match is_fresh(&event) {
                    Some(true) => stale_since = None,
                    Some(false) => _ = stale_since.get_or_insert_with(Instant::now),
                    None => {}
                }
                if to_agent.send(FromBroker::Event(Box::new(event))).await.is_err() {
                    return Ended::NotFollowed;
                }
            }
            Ok(None) => return Ended::Closed("watch"),
            Err(status) => {
                return Ended::Stream {
                    stream: "watch",
                    status,
                };
            }
        }
    }
}

/// Resolves once the broker was stale for too long; never while it is fresh.
async fn stale(since: Option<Instant>, stale_after: impl Fn() -> Duration) {
    match since {
        Some(since) => sleep_until(since + stale_after()).await,
        None => std::future::pending().await,
    }
}

/// What an event says of the broker's standing, if anything.
fn is_fresh(event: &v1::WatchEvent) -> Option<bool> {
    use v1::watch_event::Event;
    match event.event.as_ref()? {
        Event::InitDone(progress) | Event::Progress(progress) => Some(progress.fresh),
        Event::Init(_) | Event::Apply(_) | Event::Delete(_) => None,
    }
}
