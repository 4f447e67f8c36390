//! From an authenticated connection to a tunnel in the list, and out of it again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tombolo_clusterset::ClusterId;
use tombolo_trust::{CertificateDer, SpiffeId, TrustError, denied_in_chain, peer_identity};

use super::{Shared, Tunnels};
use crate::control::Kind;
use crate::limits::TRUST_CHECK_EVERY;
use crate::metrics::Direction;
use crate::shell::carrier::Carrier;
use crate::shell::cut::NamedAddress;
use crate::tunnel::{Authenticated, Greeted, Tunnel};

/// Why an authenticated connection did not become a tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdmitError {
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("{peer} has {limit} tunnels already, or there are too many in all")]
    TooMany { peer: SpiffeId, limit: usize },
    #[error("shutting down")]
    Draining,
}

impl Shared {
    /// Makes a tunnel of a connection whose handshake and hello are done; one that may not be is closed.
    pub(super) fn admit(
        self: &Arc<Self>,
        carrier: Carrier,
        direction: Direction,
        identified: Identified,
        greeted: Greeted,
    ) -> Result<Tunnel, AdmitError> {
        let Identified {
            peer,
            cluster,
            certified: _,
            chain,
            generation,
            named,
        } = identified;
        let mut tunnels = self.tunnels.lock();
        // The checks stand under the lock: a drain or an eviction that comes later finds the tunnel in the list.
        if let Err(error) = self.may_enter(&mut tunnels, direction, &peer, &chain) {
            carrier.close(&error.to_string());
            return Err(error);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let on_end = {
            let (shared, peer) = (Arc::downgrade(self), peer.clone());
            move || {
                if let Some(shared) = shared.upgrade() {
                    shared.tunnels.lock().remove(id, direction, &peer);
                }
            }
        };
        let authenticated = Authenticated {
            id,
            carrier,
            direction,
            peer,
            cluster,
            chain,
            generation,
            named,
        };
        let (tunnel, control) = Tunnel::prepare(
            authenticated,
            greeted,
            self.surroundings(),
            self.identity.generations(),
        );
        tunnels.by_id.insert(id, tunnel.clone());
        drop(tunnels);
        tracing::info!(
            cluster = %tunnel.cluster(),
            peer = %tunnel.peer(),
            remote = %tunnel.remote_addr(),
            transport = tunnel.transport().as_str(),
            ?direction,
            "tunnel open"
        );
        if direction == Direction::Inbound {
            self.handler.tunnel(tunnel.clone());
        }
        tunnel.start(control, Arc::clone(&self.handler), on_end);
        Ok(tunnel)
    }

    /// Whether there is room for one more; an inbound one is counted.
    fn may_enter(
        &self,
        tunnels: &mut Tunnels,
        direction: Direction,
        peer: &SpiffeId,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), AdmitError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(AdmitError::Draining);
        }
        denied_in_chain(chain, &self.identity.trust().load())?;
        if direction == Direction::Inbound {
            let limit = self.limits.tunnels_per_identity;
            let count = tunnels.by_peer.get(peer).copied().unwrap_or_default();
            if count >= limit || tunnels.by_id.len() >= self.limits.tunnels {
                return Err(AdmitError::TooMany {
                    peer: peer.clone(),
                    limit,
                });
            }
            tunnels.by_peer.insert(peer.clone(), count + 1);
        }
        Ok(())
    }

    /// Who is at the other end of a connection that the verifier has accepted.
    pub(super) fn identify(
        &self,
        chain: Vec<CertificateDer<'static>>,
        remote: SocketAddr,
        generation: u64,
    ) -> Result<Identified, String> {
        let peer = peer_identity(&chain).map_err(|error| error.to_string())?;
        let cluster = peer
            .cluster()
            .cloned()
            .ok_or_else(|| format!("{peer} is no member of a cluster"))?;
        let named = self.cut.name(remote, &cluster);
        Ok(Identified {
            certified: Kind::certified(&peer),
            peer,
            cluster,
            chain,
            generation,
            named,
        })
    }
}

/// The peer of a connection.
pub(super) struct Identified {
    peer: SpiffeId,
    pub(super) cluster: ClusterId,
    /// What the peer's certificate lets it be, whatever its hello says.
    pub(super) certified: Kind,
    chain: Vec<CertificateDer<'static>>,
    generation: u64,
    named: NamedAddress,
}

impl Tunnels {
    fn remove(&mut self, id: u64, direction: Direction, peer: &SpiffeId) {
        self.by_id.remove(&id);
        if direction == Direction::Inbound
            && let Some(count) = self.by_peer.get_mut(peer)
        {
            *count -= 1;
            if *count == 0 {
                self.by_peer.remove(peer);
            }
        }
    }
}

/// Cuts tunnels whose peer was evicted (DESIGN §4.12).
pub(super) async fn keep_trust(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TRUST_CHECK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut seen = shared.identity.trust().load();
    loop {
        ticks.tick().await;
        let now = shared.identity.trust().load();
        if Arc::ptr_eq(&seen, &now) {
            continue;
        }
        for tunnel in shared.tunnels() {
            if let Err(error) = denied_in_chain(tunnel.chain(), &now) {
                tracing::warn!(cluster = %tunnel.cluster(), peer = %tunnel.peer(), %error, "tunnel cut");
                shared.metrics.evicted();
                tunnel.close(&error.to_string());
            }
        }
        seen = now;
    }
}
