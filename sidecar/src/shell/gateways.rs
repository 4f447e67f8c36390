//! The tunnels to remote gateways, one each, dialled when a flow needs them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::sync::{broadcast, watch};
use tombolo_clusterset::{ClusterId, Link, LinkProfile, LinkState, Snapshot};
use tombolo_daemon::Seams;
use tombolo_tunnel::limits::TUNNEL_AGE_MAX;
use tombolo_tunnel::{Endpoint, OpenError, TransportChoice, Tunnel, TunnelEvent};

use crate::pools::{Choice, Gateway, PathReport, Pools};

/// What flows of a tunnel may still take whose gateway is no longer named by the snapshot.
const WITHDRAWN_GRACE: Duration = Duration::from_secs(60);

/// Why no gateway of a cluster took a flow. No byte of it has left.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// Nothing to dial.
    #[error("{0} has no gateway that can be dialled")]
    NoGateway(ClusterId),
    /// Every gateway failed a moment ago.
    #[error("every gateway of {cluster} failed a moment ago; the next dial is due in {} ms", wait.as_millis())]
    Resting { cluster: ClusterId, wait: Duration },
    /// The dial failed.
    #[error("{0}")]
    Dial(Arc<str>),
    /// The tunnel was there, and the flow was not taken.
    #[error(transparent)]
    Open(#[from] OpenError),
}

#[derive(Debug)]
pub(super) struct Gateways {
    endpoint: Endpoint,
    inner: Mutex<Inner>,
    /// Told when a path changes its state.
    changes: watch::Sender<()>,
    seams: Seams,
}

#[derive(Debug)]
struct Inner {
    pools: Pools,
    slots: BTreeMap<Gateway, Slot>,
    rng: StdRng,
}

#[derive(Debug, Clone)]
enum Slot {
    Dialling(Dialled),
    Open(Tunnel),
}

/// What a dial gives, to all who wait for it.
type Dialled = watch::Receiver<Option<Result<Tunnel, Arc<str>>>>;

impl Gateways {
    pub(super) fn new(endpoint: Endpoint, profile: LinkProfile, seams: Seams) -> Arc<Self> {
        let inner = Inner {
            pools: Pools::new(profile),
            slots: BTreeMap::new(),
            rng: seams.entropy.rng(),
        };
        Arc::new(Self {
            endpoint,
            inner: Mutex::new(inner),
            changes: watch::Sender::new(()),
            seams,
        })
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub(super) fn links(&self) -> BTreeMap<ClusterId, Link> {
        self.inner.lock().pools.links(self.now())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.inner.lock().pools.deadline(self.now())
    }

    pub(super) fn report(&self) -> Vec<PathReport> {
        self.inner.lock().pools.report()
    }

    /// Takes the gateways of a snapshot; tunnels to those that it does not name any more end.
    pub(super) fn set_snapshot(&self, snapshot: &Snapshot) {
        let gone: Vec<Slot> = {
            let mut inner = self.inner.lock();
            let gone = inner.pools.set_gateways(snapshot);
            gone.iter()
                .filter_map(|gateway| inner.slots.remove(gateway))
                .collect()
        };
        for slot in gone {
            if let Slot::Open(tunnel) = slot {
                tunnel.go_away("the gateway is no longer in the snapshot", WITHDRAWN_GRACE);
            }
        }
    }

    /// Opens a flow at a gateway of `cluster`: at the best one, or at the next when its tunnel fails. What the cluster
    /// refuses, all its gateways refuse.
    pub(super) async fn open<F, Opened>(
        self: &Arc<Self>,
        cluster: &ClusterId,
        open: impl Fn(Tunnel) -> F,
    ) -> Result<Opened, Failed>
    where
        F: Future<Output = Result<Opened, OpenError>>,
    {
        let now = self.now();
        let choice = self.inner.lock().pools.choose(cluster, now);
        let gateways = match choice {
            Choice::Try(gateways) => gateways,
            Choice::None => return Err(Failed::NoGateway(cluster.clone())),
            Choice::Rest { until } => {
                let wait = until.saturating_duration_since(now);
                return Err(Failed::Resting {
                    cluster: cluster.clone(),
                    wait,
                });
            }
        };
        let mut failed = Failed::NoGateway(cluster.clone());
        for gateway in gateways {
            let tunnel = match self.tunnel(&gateway).await {
                Ok(tunnel) => tunnel,
                Err(reason) => {
                    failed = Failed::Dial(reason);
                    continue;
                }
            };
            match open(tunnel).await {
                Ok(opened) => {
                    let now = self.now();
                    self.inner.lock().pools.on_used(&gateway, now);
                    return Ok(opened);
                }
                Err(error @ (OpenError::Refused { .. } | OpenError::Header(_))) => return Err(error.into()),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    /// The usable tunnel to `gateway`, dialled if need be; whoever comes meanwhile waits for the same dial.
    async fn tunnel(self: &Arc<Self>, gateway: &Gateway) -> Result<Tunnel, Arc<str>> {
        let mut dialled = match self.slot(gateway) {
            Ok(Slot::Open(tunnel)) => return Ok(tunnel),
            Ok(Slot::Dialling(dialled)) => dialled,
            Err(reason) => return Err(reason),
        };
        match dialled.wait_for(Option::is_some).await {
            Ok(result) => result
                .clone()
                .unwrap_or_else(|| Err(Arc::from("the dial was given up"))),
            Err(_) => Err(Arc::from("the dial was given up")),
        }
    }

    fn slot(self: &Arc<Self>, gateway: &Gateway) -> Result<Slot, Arc<str>> {
        let now = self.now();
        let mut inner = self.inner.lock();
        match inner.slots.get(gateway) {
            Some(Slot::Open(tunnel)) if !tunnel.is_usable() || tunnel.is_outdated() => {
                // New flows move to a new tunnel, the old one lives until its last flow ends (DESIGN §4.11).
                tunnel.go_away("replaced by a new tunnel", TUNNEL_AGE_MAX);
                inner.slots.remove(gateway);
                inner.pools.on_replaced(gateway);
            }
            Some(slot) => return Ok(slot.clone()),
            None => {}
        }
        if !inner.pools.begin_dial(gateway, now) {
            return Err(format!(
                "{} at {} is not to be dialled now",
                gateway.cluster, gateway.address
            )
            .into());
        }
        Ok(self.spawn_dial(&mut inner, gateway.clone()))
    }

    /// Dials lost gateways again whose rest is over.
    pub(super) fn redial(self: &Arc<Self>) {
        let now = self.now();
        let mut inner = self.inner.lock();
        for gateway in inner.pools.begin_redials(now) {
            self.spawn_dial(&mut inner, gateway);
        }
    }

    /// Dials a gateway that is marked as being dialled, and follows its tunnel.
    fn spawn_dial(self: &Arc<Self>, inner: &mut Inner, gateway: Gateway) -> Slot {
        let (sender, receiver) = watch::channel(None);
        let slot = Slot::Dialling(receiver);
        inner.slots.insert(gateway.clone(), slot.clone());
        let gateways = Arc::clone(self);
        tokio::spawn(async move {
            let result = gateways.dial(&gateway).await;
            sender.send_replace(Some(result.clone()));
            if let Ok(tunnel) = result {
                gateways.watch(gateway, tunnel).await;
            }
        });
        slot
    }

    /// Takes 5 s at most, as [`Endpoint::dial`] does.
    async fn dial(&self, gateway: &Gateway) -> Result<Tunnel, Arc<str>> {
        let result = self
            .endpoint
            .dial(gateway.address, &gateway.cluster, TransportChoice::Auto)
            .await;
        let now = self.now();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let result = match result {
            Ok(tunnel) if inner.pools.on_opened(gateway, now) => {
                inner.slots.insert(gateway.clone(), Slot::Open(tunnel.clone()));
                Ok(tunnel)
            }
            Ok(tunnel) => {
                tunnel.close("the gateway is no longer in the snapshot");
                Err(Arc::from("the gateway is no longer in the snapshot"))
            }
            Err(error) => {
                tracing::debug!(cluster = %gateway.cluster, %error, "gateway not reached");
                inner.slots.remove(gateway);
                inner
                    .pools
                    .on_lost(gateway, error.to_string(), now, &mut inner.rng);
                Err(error.to_string().into())
            }
        };
        inner.pools.poll(gateway, now);
        drop(guard);
        self.changes.send_replace(());
        result
    }

    /// Follows a tunnel until it is over or replaced.
    async fn watch(&self, gateway: Gateway, tunnel: Tunnel) {
        let mut events = tunnel.events();
        let every = self.inner.lock().pools.ping_interval();
        let mut pings = tokio::time::interval(every);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                // Answers first, or a process that slept takes its own sleep for the peer's.
                biased;
                event = events.recv() => match event {
                    Ok(TunnelEvent::Pong { rtt }) => self.tell(&gateway, &tunnel, |pools, now| pools.on_pong(&gateway, rtt, now)),
                    Ok(TunnelEvent::GoingAway { reason }) => {
                        tracing::debug!(cluster = %gateway.cluster, %reason, "tunnel is going away");
                        return self.forget(&gateway, &tunnel, None);
                    }
                    Ok(TunnelEvent::Closed { reason }) => return self.forget(&gateway, &tunnel, Some(&reason)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return self.forget(&gateway, &tunnel, Some("closed")),
                },
                _ = pings.tick() => {
                    let in_use = tunnel.open_flows() > 0;
                    self.tell(&gateway, &tunnel, |pools, now| {
                        pools.on_pinged(&gateway, now);
                        if in_use {
                            pools.on_used(&gateway, now);
                        }
                    });
                    if self.is_over(&gateway, &tunnel) {
                        return;
                    }
                }
            }
        }
    }

    /// Passes on what happened to the tunnel in use, and acts on what follows from it.
    fn tell(&self, gateway: &Gateway, tunnel: &Tunnel, happened: impl FnOnce(&mut Pools, Instant)) {
        let now = self.now();
        let changed = {
            let mut inner = self.inner.lock();
            if !inner.holds(gateway, tunnel) {
                return;
            }
            happened(&mut inner.pools, now);
            inner.pools.poll(gateway, now)
        };
        if let Some(state) = changed {
            tracing::info!(cluster = %gateway.cluster, address = %gateway.address, state = state.as_str(), "path changed");
            self.changes.send_replace(());
            if state == LinkState::Down {
                // Down resets old flows (DESIGN §4.3); its end is told by the event.
                tunnel.close("no answer");
            }
        }
    }

    /// Whether a tunnel needs no more watching: it was replaced, or is let go now because nobody uses it.
    fn is_over(&self, gateway: &Gateway, tunnel: &Tunnel) -> bool {
        let now = self.now();
        let mut inner = self.inner.lock();
        if !inner.holds(gateway, tunnel) {
            return true;
        }
        let unused = inner.pools.is_unused(gateway, now);
        if unused {
            inner.slots.remove(gateway);
            inner.pools.on_replaced(gateway);
            tunnel.go_away("unused", WITHDRAWN_GRACE);
        }
        unused
    }

    /// The tunnel takes no more flows: lost, for the reason given, or asked to go.
    fn forget(&self, gateway: &Gateway, tunnel: &Tunnel, lost: Option<&str>) {
        let now = self.now();
        {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            if !inner.holds(gateway, tunnel) {
                return;
            }
            inner.slots.remove(gateway);
            match lost {
                Some(reason) => inner
                    .pools
                    .on_lost(gateway, reason.to_owned(), now, &mut inner.rng),
                None => inner.pools.on_replaced(gateway),
            }
            inner.pools.poll(gateway, now);
        }
        self.changes.send_replace(());
    }

    fn now(&self) -> Instant {
        self.seams.clock.now().into_std()
    }
}

impl Inner {
    fn holds(&self, gateway: &Gateway, tunnel: &Tunnel) -> bool {
        matches!(self.slots.get(gateway), Some(Slot::Open(held)) if held.id() == tunnel.id())
    }
}
