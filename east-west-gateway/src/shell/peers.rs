//! Runs [`crate::links`]: dials, listens to every tunnel's answers, and publishes the links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tombolo_clusterset::ClusterId;
use tombolo_daemon::supervise::TaskResult;
use tombolo_tunnel::{Endpoint, TransportChoice, Tunnel, TunnelEvent};
use tracing::{debug, info};

use super::context::{Context, LinkView};
use crate::links::{Action, Links, TunnelFacts, TunnelId};

/// Events of tunnels that wait to be counted: 250 tunnels, ten answers a second each, for a fifth of a second.
const EVENTS: usize = 512;

/// Tunnels dialled by peers that wait to be counted: all of 250 clusters at once.
pub(super) const INBOUND: usize = 256;

/// How often tunnels are asked whether they speak with an old certificate: renewal is hours before expiry.
const RENEWAL_CHECK: Duration = Duration::from_secs(5);

/// An RTT that changes alone is published this often: it orders candidates, and a table of 250 links ten times a second would
/// keep its readers busy.
const RTT_EVERY: Duration = Duration::from_secs(1);

/// Answers within this time are looked at together: with 250 peers, ten answers a second each would be 2,500 looks at all of
/// them. Against the 300 ms after which a link is suspect it does not count.
const PONGS_TOGETHER: Duration = Duration::from_millis(20);

/// What a replaced tunnel's flows may still take (DESIGN §4.11).
const RETIRED_LIFE: Duration = Duration::from_secs(24 * 3600);

enum Event {
    Dialled(ClusterId, SocketAddr, Tunnel),
    DialFailed(ClusterId, SocketAddr, String),
    Tunnel(ClusterId, TunnelId, TunnelEvent),
}

/// The task that owns the links.
pub(super) struct Peers {
    pub(super) context: Arc<Context>,
    pub(super) endpoint: Endpoint,
    pub(super) transport: TransportChoice,
    /// A dial takes no longer, so that a gateway which comes back is not waited for by a handshake that began before: QUIC
    /// repeats its first packet ever more seldom (RFC 9002 §6.2).
    pub(super) dial_limit: Duration,
    pub(super) links: Links,
    pub(super) inbound: mpsc::Receiver<Tunnel>,
    /// Shared with the server of the links, which goes on through a drain.
    pub(super) view: Arc<watch::Sender<Arc<LinkView>>>,
}

struct Running {
    peers: Peers,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    events: mpsc::Sender<Event>,
    tasks: JoinSet<()>,
    rng: StdRng,
    published: Instant,
    /// When the links are looked at next.
    wake: Option<Instant>,
}

impl Peers {
    /// Until the drain begins: the tunnels that stand then belong to the flows that run.
    pub(super) async fn run(self) -> TaskResult {
        let (events, mut incoming) = mpsc::channel(EVENTS);
        let context = Arc::clone(&self.context);
        let mut snapshots = context.snapshots.receiver();
        let rng = context.seams.entropy.rng();
        let mut running = Running {
            published: context.now(),
            peers: self,
            tunnels: BTreeMap::new(),
            events,
            tasks: JoinSet::new(),
            rng,
            wake: None,
        };
        let mut renewals = tokio::time::interval(RENEWAL_CHECK);
        snapshots.mark_changed();
        loop {
            let wake = running.wake;
            let due = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let settle = tokio::select! {
                () = context.shutdown.drain() => return Ok(()),
                changed = snapshots.changed() => {
                    changed?;
                    if let Some(snapshot) = snapshots.borrow_and_update().clone() {
                        let actions = running.peers.links.set_members(&snapshot, context.now());
                        running.act(actions);
                    }
                    true
                }
                Some(event) = incoming.recv() => running.take(event),
                Some(tunnel) = running.peers.inbound.recv() => running.take_inbound(tunnel),
                Some(ended) = running.tasks.join_next() => {
                    ended?;
                    false
                }
                _ = renewals.tick() => running.renew(),
                () = due => true,
            };
            // What has arrived is counted before what is overdue: this process may have slept.
            let mut settle = settle;
            while let Ok(event) = incoming.try_recv() {
                settle |= running.take(event);
            }
            if settle {
                running.settle();
            } else {
                running.settle_soon();
            }
        }
    }
}

impl Running {
    fn now(&self) -> Instant {
        self.peers.context.now()
    }

    /// Asks the links what is overdue and due, does it, and publishes.
    fn settle(&mut self) {
        let now = self.now();
        let actions = self.peers.links.poll(now);
        self.act(actions);
        self.publish();
        self.wake = self.peers.links.deadline(now);
    }

    /// Answers come all the time, and what they change can wait a moment.
    fn settle_soon(&mut self) {
        let soon = self.now() + PONGS_TOGETHER;
        self.wake = Some(self.wake.map_or(soon, |wake| wake.min(soon)));
    }

    /// Counts an event; true when the links are to be looked at once.
    fn take(&mut self, event: Event) -> bool {
        let now = self.now();
        match event {
            Event::Dialled(cluster, address, tunnel) => {
                let facts = self.adopt(&tunnel);
                let actions = self.peers.links.on_dialled(&cluster, address, facts, now);
                self.act(actions);
            }
            Event::DialFailed(cluster, address, reason) => {
                debug!(%cluster, %address, reason, "dial failed");
                self.peers.context.metrics.dial_failed(&cluster);
                self.peers
                    .links
                    .on_dial_failed(&cluster, address, reason, now, &mut self.rng);
            }
            Event::Tunnel(cluster, tunnel, TunnelEvent::Pong { rtt }) => {
                self.peers.links.on_pong(&cluster, tunnel, rtt, now);
                return false;
            }
            Event::Tunnel(cluster, tunnel, TunnelEvent::GoingAway { .. }) => {
                self.peers.links.on_going_away(&cluster, tunnel, now);
            }
            Event::Tunnel(cluster, tunnel, TunnelEvent::Closed { reason }) => {
                self.tunnels.remove(&tunnel);
                self.peers
                    .links
                    .on_closed(&cluster, tunnel, &reason, now, &mut self.rng);
            }
        }
        true
    }

    fn take_inbound(&mut self, tunnel: Tunnel) -> bool {
        let facts = self.adopt(&tunnel);
        let cluster = tunnel.cluster().clone();
        let now = self.now();
        let actions = self.peers.links.on_inbound(&cluster, facts, now);
        self.act(actions);
        true
    }

    /// Listens to a tunnel's events from now on.
    fn adopt(&mut self, tunnel: &Tunnel) -> TunnelFacts {
        self.tunnels.insert(tunnel.id(), tunnel.clone());
        self.tasks.spawn(listen(tunnel.clone(), self.events.clone()));
        TunnelFacts {
            id: tunnel.id(),
            transport: tunnel.transport().as_str(),
            remote: tunnel.remote_addr(),
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Dial { cluster, address } => {
                    let (endpoint, how) = (
                        self.peers.endpoint.clone(),
                        (self.peers.transport, self.peers.dial_limit),
                    );
                    self.tasks
                        .spawn(dial(endpoint, how, cluster, address, self.events.clone()));
                }
                Action::Retire { tunnel, reason } => {
                    if let Some(tunnel) = self.tunnels.get(&tunnel) {
                        debug!(cluster = %tunnel.cluster(), tunnel = tunnel.id(), reason, "tunnel retired");
                        tunnel.go_away(reason, RETIRED_LIFE);
                    }
                }
                Action::Close { tunnel, reason } => {
                    if let Some(tunnel) = self.tunnels.remove(&tunnel) {
                        info!(cluster = %tunnel.cluster(), tunnel = tunnel.id(), flows = tunnel.open_flows(), reason, "tunnel closed");
                        tunnel.close(reason);
                    }
                }
            }
        }
    }

    fn renew(&mut self) -> bool {
        let now = self.now();
        let mut any = false;
        for tunnel in self
            .tunnels
            .values()
            .filter(|tunnel| tunnel.is_usable() && tunnel.is_outdated())
        {
            self.peers.links.on_outdated(tunnel.cluster(), tunnel.id(), now);
            any = true;
        }
        any
    }

    /// Swaps the view when something changed that a reader would act on, or an RTT after [`RTT_EVERY`].
    fn publish(&mut self) {
        let now = self.now();
        let reports = self.peers.links.reports();
        let ids: BTreeMap<ClusterId, Vec<TunnelId>> = reports
            .keys()
            .map(|id| (id.clone(), self.peers.links.tunnels(id)))
            .collect();
        let old = self.peers.view.borrow().clone();
        let without_rtt = |report: &tombolo_wire::convert::LinkReport| {
            (
                report.state,
                report.transport.clone(),
                report.peer.clone(),
                report.reversed,
                report.reason.clone(),
            )
        };
        let same_reports = reports.len() == old.reports.len()
            && reports.iter().all(|(id, new)| {
                old.reports
                    .get(id)
                    .is_some_and(|old| without_rtt(old) == without_rtt(new))
            });
        let same_tunnels = ids.iter().all(|(id, new)| {
            let old = old.tunnels.get(id).map(Vec::as_slice).unwrap_or_default();
            old.iter().map(Tunnel::id).eq(new.iter().copied())
        });
        let rtt_due = now.saturating_duration_since(self.published) >= RTT_EVERY;
        if same_reports && same_tunnels && !rtt_due {
            return;
        }
        self.published = now;
        let metrics = &self.peers.context.metrics;
        for (id, report) in &reports {
            let before = old.reports.get(id).map(|report| report.state);
            if before != Some(report.state) {
                info!(cluster = %id, state = ?report.state, peer = report.peer, reason = report.reason, "link");
            }
            metrics.link(id, report.state, report.rtt);
        }
        let gone: BTreeSet<&ClusterId> = old
            .reports
            .keys()
            .filter(|id| !reports.contains_key(*id))
            .collect();
        for id in gone {
            metrics.forget_link(id);
        }
        let tunnels = ids.into_iter().map(|(id, ids)| {
            (
                id,
                ids.iter()
                    .filter_map(|id| self.tunnels.get(id).cloned())
                    .collect(),
            )
        });
        let view = LinkView {
            links: self.peers.links.links(),
            tunnels: tunnels.collect(),
            reports,
        };
        self.peers.view.send_replace(Arc::new(view));
    }
}

async fn dial(
    endpoint: Endpoint,
    (transport, limit): (TransportChoice, Duration),
    cluster: ClusterId,
    address: SocketAddr,
    events: mpsc::Sender<Event>,
) {
    let event = match tokio::time::timeout(limit, endpoint.dial(address, &cluster, transport)).await {
        Ok(Ok(tunnel)) => Event::Dialled(cluster, address, tunnel),
        Ok(Err(error)) => Event::DialFailed(cluster, address, error.to_string()),
        Err(_) => {
            let reason = format!(
                "no answer from {address} within {} ms; is it up and allowed there?",
                limit.as_millis()
            );
            Event::DialFailed(cluster, address, reason)
        }
    };
    // An error says that the process ends.
    drop(events.send(event).await);
}

/// Passes a tunnel's events on, to its end.
async fn listen(tunnel: Tunnel, events: mpsc::Sender<Event>) {
    let mut heard = tunnel.events();
    let (cluster, id) = (tunnel.cluster().clone(), tunnel.id());
    loop {
        let event = tokio::select! {
            biased;
            reason = tunnel.closed() => TunnelEvent::Closed { reason },
            heard = heard.recv() => match heard {
                Ok(event) => event,
                // Answers that were missed are followed by others.
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => TunnelEvent::Closed { reason: Arc::from("its task ended") },
            },
        };
        let over = matches!(event, TunnelEvent::Closed { .. });
        if events
            .send(Event::Tunnel(cluster.clone(), id, event))
            .await
            .is_err()
            || over
        {
            return;
        }
    }
}
