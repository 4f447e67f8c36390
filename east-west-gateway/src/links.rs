//! The paths to every other cluster: which to dial and when, which tunnel stays when both sides dialled, and what state the
//! best of them gives the link.
//!
//! - A gateway dials every gateway address of every other cluster. One that nobody can dial (it has no address: behind NAT)
//!   dials out, and its peers reuse that tunnel in the other direction.
//! - When both dial, the tunnel dialled by the lower `ClusterId` stays. The higher one waits a moment before it dials at all,
//!   so that this is rare.
//! - Suspect diverts new flows; Down closes the tunnel, which resets its flows (DESIGN §4.3), and dials anew.
//!
//! Pings: the tunnel sends its own and tells the answers ([`Links::on_pong`]). What is overdue is counted here, from a tick of
//! the same interval.

mod peer;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tombolo_clusterset::link::LinkProfile;
use tombolo_clusterset::{ClusterId, Lease, Link, Snapshot};
use tombolo_wire::convert::LinkReport;

use peer::Peer;

/// Names one tunnel of this process.
pub type TunnelId = u64;

/// How long the higher `ClusterId` leaves the first dial to the lower one.
pub const DIAL_DEFERENCE: Duration = Duration::from_millis(300);

/// First delay before a lost or refused path is dialled again.
pub const REDIAL_BASE: Duration = Duration::from_millis(100);

/// Longest: a gateway that comes back is noticed within it, and 250 clusters dial 125 times a second at worst.
pub const REDIAL_MAX: Duration = Duration::from_secs(2);

/// Why there is no path between two members that cannot be dialled.
pub const BOTH_DIAL_OUT: &str =
    "both clusters only dial out; give one of them a gateway address that the other can reach";

/// What is known of a tunnel when it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelFacts {
    /// Its number.
    pub id: TunnelId,
    /// "quic" or "h2".
    pub transport: &'static str,
    /// The other end.
    pub remote: SocketAddr,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial that gateway of that cluster and tell the outcome.
    Dial {
        /// Whose it is.
        cluster: ClusterId,
        /// Where it listens.
        address: SocketAddr,
    },
    /// Another tunnel takes its place: no new flows on it, those that run may end.
    Retire {
        /// Which one.
        tunnel: TunnelId,
        /// For the peer's log.
        reason: &'static str,
    },
    /// End it with all its flows.
    Close {
        /// Which one.
        tunnel: TunnelId,
        /// For both logs.
        reason: &'static str,
    },
}

/// All paths to all other clusters.
///
/// Call order: `set_members` with each snapshot, `on_*` for what happened, `poll` after each of them and at [`Self::deadline`].
#[derive(Debug)]
pub struct Links {
    rules: Rules,
    peers: BTreeMap<ClusterId, Peer>,
}

/// What holds for every peer.
#[derive(Debug, Clone)]
struct Rules {
    here: ClusterId,
    outbound_only: bool,
    profile: LinkProfile,
}

impl Links {
    /// No peers yet. `outbound_only`: nobody can dial this cluster.
    #[must_use]
    pub fn new(here: ClusterId, outbound_only: bool, profile: LinkProfile) -> Self {
        Self {
            rules: Rules {
                here,
                outbound_only,
                profile,
            },
            peers: BTreeMap::new(),
        }
    }

    /// Takes in who is a member, where their gateways are, and their leases.
    pub fn set_members(&mut self, snapshot: &Snapshot, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let rules = &self.rules;
        self.peers.retain(|id, peer| {
            let stays = snapshot.clusters.contains_key(id);
            if !stays {
                actions.extend(peer.close_all("the cluster is no member any more"));
            }
            stays
        });
        for (id, view) in snapshot.clusters.iter().filter(|(id, _)| **id != rules.here) {
            let peer = self
                .peers
                .entry(id.clone())
                .or_insert_with(|| Peer::new(id.clone(), rules, now));
            let lease = snapshot.lease(id).unwrap_or(Lease::Unknown);
            actions.extend(peer.set_view(&view.gateways, lease, rules, now));
        }
        actions
    }

    /// A dial succeeded.
    pub fn on_dialled(
        &mut self,
        cluster: &ClusterId,
        address: SocketAddr,
        tunnel: TunnelFacts,
        now: Instant,
    ) -> Vec<Action> {
        match self.peers.get_mut(cluster) {
            Some(peer) => peer.on_dialled(address, tunnel, &self.rules, now),
            None => vec![Action::Close {
                tunnel: tunnel.id,
                reason: "the cluster is no member any more",
            }],
        }
    }

    /// A dial failed, or took too long.
    pub fn on_dial_failed(
        &mut self,
        cluster: &ClusterId,
        address: SocketAddr,
        reason: String,
        now: Instant,
        rng: &mut impl rand::Rng,
    ) {
        if let Some(peer) = self.peers.get_mut(cluster) {
            peer.on_dial_failed(address, reason, now, rng);
        }
    }

    /// A gateway of another cluster dialled us.
    pub fn on_inbound(&mut self, cluster: &ClusterId, tunnel: TunnelFacts, now: Instant) -> Vec<Action> {
        match self.peers.get_mut(cluster) {
            Some(peer) => peer.on_inbound(tunnel, &self.rules, now),
            // Trust let it in before the snapshot named it: it is kept, and has a place once it is a member.
            None => {
                let mut peer = Peer::new(cluster.clone(), &self.rules, now);
                let actions = peer.on_inbound(tunnel, &self.rules, now);
                self.peers.insert(cluster.clone(), peer);
                actions
            }
        }
    }

    /// A ping was answered.
    pub fn on_pong(&mut self, cluster: &ClusterId, tunnel: TunnelId, rtt: Duration, now: Instant) {
        if let Some(peer) = self.peers.get_mut(cluster) {
            peer.on_pong(tunnel, rtt, now);
        }
    }

    /// The peer sends no new flows and takes none: the tunnel is replaced.
    pub fn on_going_away(&mut self, cluster: &ClusterId, tunnel: TunnelId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(cluster) {
            peer.on_going_away(tunnel, now);
        }
    }

    /// The tunnel speaks with an older certificate than ours is now: dial one that takes its place.
    pub fn on_outdated(&mut self, cluster: &ClusterId, tunnel: TunnelId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(cluster) {
            peer.on_outdated(tunnel, now);
        }
    }

    /// A tunnel ended.
    pub fn on_closed(
        &mut self,
        cluster: &ClusterId,
        tunnel: TunnelId,
        reason: &str,
        now: Instant,
        rng: &mut impl rand::Rng,
    ) {
        if let Some(peer) = self.peers.get_mut(cluster) {
            peer.on_closed(tunnel, reason, now, rng);
        }
    }

    /// Counts what is overdue and says what is due.
    pub fn poll(&mut self, now: Instant) -> Vec<Action> {
        self.peers
            .values_mut()
            .flat_map(|peer| peer.poll(&self.rules, now))
            .collect()
    }

    /// When [`Self::poll`] is due next.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.peers
            .values()
            .filter_map(|peer| peer.deadline(&self.rules, now))
            .min()
    }

    /// Every link, for the table that DNS, agent and sidecars read.
    #[must_use]
    pub fn reports(&self) -> BTreeMap<ClusterId, LinkReport> {
        self.peers
            .iter()
            .map(|(id, peer)| (id.clone(), peer.report(&self.rules)))
            .collect()
    }

    /// Every link, for the selection of this gateway.
    #[must_use]
    pub fn links(&self) -> BTreeMap<ClusterId, Link> {
        self.peers
            .iter()
            .map(|(id, peer)| (id.clone(), peer.link()))
            .collect()
    }

    /// The tunnels to `cluster` that take new flows, best first.
    #[must_use]
    pub fn tunnels(&self, cluster: &ClusterId) -> Vec<TunnelId> {
        self.peers.get(cluster).map(Peer::tunnels).unwrap_or_default()
    }

    /// Every other cluster that has a tunnel or should have one.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterId> {
        self.peers.keys()
    }
}

#[cfg(test)]
mod tests;
