//! The tunnels of a gateway: dialled, pinged, closed.

use tombolo_clusterset::ClusterId;
use tombolo_clusterset::link::LinkProfile;
use tombolo_gateway::links::{Action, TunnelFacts};

use super::{DIAL_TIME, Gateway, IDLE_TIME, Outcome, RETIRED_TIME, number_of};
use crate::agent::gateways;
use crate::net::{Message, Node};
use crate::scene::Scene;
use crate::tunnels::{Packet, Tunnel};

impl Gateway {
    pub(super) fn act(&mut self, actions: Vec<Action>, scene: &mut Scene) {
        for action in actions {
            match action {
                Action::Dial { cluster, address } => {
                    self.counter += 1;
                    let tunnel = self.counter * 64 + self.number as u64;
                    self.dials
                        .insert(tunnel, (cluster.clone(), address, scene.now + DIAL_TIME));
                    if let Some(peer) = number_of(address) {
                        self.send(
                            peer,
                            &cluster,
                            Packet::Dial {
                                tunnel,
                                cluster: self.cluster.clone(),
                            },
                            scene,
                        );
                    }
                }
                Action::Retire { tunnel, .. } => {
                    if let Some(tunnel) = self.tunnels.get_mut(&tunnel) {
                        tunnel.ends_at = Some(scene.now + RETIRED_TIME);
                    }
                }
                Action::Close { tunnel, reason } => {
                    if let Some(Tunnel { peer, cluster, .. }) = self.tunnels.remove(&tunnel) {
                        scene.note(format_args!(
                            "gateway {} closes a tunnel to {cluster}: {reason}",
                            self.number
                        ));
                        self.send(peer, &cluster, Packet::Closed { tunnel }, scene);
                        let now = scene.instant();
                        self.links
                            .on_closed(&cluster, tunnel, reason, now, &mut scene.rng);
                    }
                }
            }
        }
    }

    pub(super) fn tend_tunnels(&mut self, scene: &mut Scene) {
        let now = scene.instant();
        let late: Vec<u64> = self
            .dials
            .iter()
            .filter(|(_, dial)| dial.2 <= scene.now)
            .map(|(id, _)| *id)
            .collect();
        for tunnel in late {
            if let Some((cluster, address, _)) = self.dials.remove(&tunnel) {
                self.links
                    .on_dial_failed(&cluster, address, "no answer".to_owned(), now, &mut scene.rng);
            }
        }
        let ids: Vec<u64> = self.tunnels.keys().copied().collect();
        for id in ids {
            let Some(tunnel) = self.tunnels.get_mut(&id) else {
                continue;
            };
            if scene.now.saturating_sub(tunnel.heard) >= IDLE_TIME {
                let cluster = tunnel.cluster.clone();
                self.tunnels.remove(&id);
                self.links.on_closed(&cluster, id, "idle", now, &mut scene.rng);
            } else if tunnel.ends_at.is_some_and(|at| at <= scene.now) {
                let (peer, cluster) = (tunnel.peer, tunnel.cluster.clone());
                self.tunnels.remove(&id);
                self.send(peer, &cluster, Packet::Closed { tunnel: id }, scene);
                self.links
                    .on_closed(&cluster, id, "replaced", now, &mut scene.rng);
            } else if tunnel.ping_at <= scene.now {
                tunnel.ping_at = scene.now + LinkProfile::LAN.ping_interval;
                let (peer, cluster) = (tunnel.peer, tunnel.cluster.clone());
                self.send(
                    peer,
                    &cluster,
                    Packet::Ping {
                        tunnel: id,
                        sent: scene.now,
                    },
                    scene,
                );
            }
        }
    }

    pub(super) fn tunnel(&mut self, peer: usize, cluster: ClusterId, id: u64, scene: &Scene) -> TunnelFacts {
        let tunnel = Tunnel {
            peer,
            cluster,
            ping_at: scene.now,
            heard: scene.now,
            ends_at: None,
        };
        self.tunnels.insert(id, tunnel);
        TunnelFacts {
            id,
            transport: "quic",
            remote: gateways(peer)[0],
        }
    }

    /// A packet of gateway `from` arrives.
    pub fn receive(&mut self, from: usize, packet: Packet, scene: &mut Scene) {
        let now = scene.instant();
        if !self.is_up {
            return;
        }
        match packet {
            Packet::Dial { tunnel, cluster } => {
                // Trust: an evicted cluster's intermediate is denied, which membership stands for here.
                let is_member = self
                    .snapshot
                    .as_ref()
                    .is_some_and(|snapshot| snapshot.clusters.contains_key(&cluster));
                if self.is_cut(&cluster, scene) {
                    return;
                }
                if !is_member {
                    self.send(from, &cluster, Packet::Closed { tunnel }, scene);
                    return;
                }
                let facts = self.tunnel(from, cluster.clone(), tunnel, scene);
                self.send(from, &cluster, Packet::Dialled { tunnel }, scene);
                let actions = self.links.on_inbound(&cluster, facts, now);
                self.act(actions, scene);
            }
            Packet::Dialled { tunnel } => {
                if let Some((cluster, address, _)) = self.dials.remove(&tunnel) {
                    let facts = self.tunnel(from, cluster.clone(), tunnel, scene);
                    let actions = self.links.on_dialled(&cluster, address, facts, now);
                    self.act(actions, scene);
                }
            }
            Packet::Closed { tunnel } => {
                if let Some((cluster, address, _)) = self.dials.remove(&tunnel) {
                    self.links
                        .on_dial_failed(&cluster, address, "refused".to_owned(), now, &mut scene.rng);
                } else if let Some(Tunnel { cluster, .. }) = self.tunnels.remove(&tunnel) {
                    self.links
                        .on_closed(&cluster, tunnel, "closed by the peer", now, &mut scene.rng);
                }
            }
            Packet::Ping { tunnel, sent } => match self.heard(tunnel, scene) {
                Some(cluster) => self.send(from, &cluster, Packet::Pong { tunnel, sent }, scene),
                None => {
                    let packet = Message::Tunnel(Packet::Closed { tunnel });
                    scene
                        .net
                        .send(scene.now, Node::Gateway(self.number), Node::Gateway(from), packet);
                }
            },
            Packet::Pong { tunnel, sent } => {
                if let Some(cluster) = self.heard(tunnel, scene) {
                    self.links
                        .on_pong(&cluster, tunnel, scene.now.saturating_sub(sent), now);
                }
            }
            Packet::Open {
                tunnel,
                flow,
                hop,
                service,
                port,
                endpoint,
            } => {
                let Some(cluster) = self.heard(tunnel, scene) else {
                    return;
                };
                let (connected, may_move) = self.admit(&cluster, &service, port, endpoint, scene);
                self.send(
                    from,
                    &cluster,
                    Packet::Opened {
                        flow,
                        hop,
                        connected,
                        may_move,
                    },
                    scene,
                );
            }
            Packet::Opened {
                flow,
                hop,
                connected,
                may_move,
            } => {
                if let Some(flow) = self
                    .flows
                    .get_mut(&flow)
                    .filter(|flow| flow.outcome == Outcome::Pending)
                {
                    match connected {
                        true => flow.outcome = Outcome::Connected,
                        false => flow.dispatch.on_failed(hop, may_move),
                    }
                }
            }
        }
    }

    pub(super) fn heard(&mut self, tunnel: u64, scene: &Scene) -> Option<ClusterId> {
        let cluster = self.tunnels.get(&tunnel)?.cluster.clone();
        if self.is_cut(&cluster, scene) {
            return None;
        }
        self.tunnels.get_mut(&tunnel)?.heard = scene.now;
        Some(cluster)
    }
}
