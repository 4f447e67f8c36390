//! New flows of a gateway: its own, and those that others ask for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tombolo_clusterset::dispatch::{Dispatch, Step};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::local::{LocalRequest, find_local, pick_local};
use tombolo_clusterset::select::{Signals, plan};
use tombolo_clusterset::{ClusterId, ImportedCluster, ServiceKey};
use tombolo_gateway::admission::{Admission, Request, admit};
use tombolo_gateway::route::{Hop, NewFlow, hops, may_move};

use super::{FLOWS_MAX, Flow, Gateway, Outcome};
use crate::mutant::Mutant;
use crate::scene::{Fact, Scene};
use crate::tunnels::Packet;

impl Gateway {
    /// Decides about a flow from `peer`: connected, or whether it may move.
    pub(super) fn admit(
        &self,
        peer: &ClusterId,
        service: &ServiceKey,
        port: u16,
        endpoint: Option<IpAddr>,
        scene: &mut Scene,
    ) -> (bool, bool) {
        let Some(snapshot) = self.snapshot.clone() else {
            return (false, true);
        };
        let request = Request {
            peer,
            service,
            port,
            protocol: Protocol::Tcp,
            endpoint,
        };
        let (export, port) = match admit(request, &snapshot) {
            Admission::Admit { export, port, .. } => (export, port),
            Admission::Refuse { refusal, .. } => {
                let open = snapshot
                    .exports
                    .get(service)
                    .filter(|_| scene.has(Mutant::OpenGate));
                match open.and_then(|export| Some((Arc::clone(export), export.spec.ports.first()?.clone()))) {
                    Some(opened) => opened,
                    None => return (false, may_move(refusal)),
                }
            }
        };
        let (at, from, key) = (self.number, peer.clone(), service.clone());
        scene.note(format_args!("gateway {at} admits {from} to {key}"));
        scene.facts.push(Fact::Admitted {
            at,
            from,
            key,
            snapshot: Arc::clone(&snapshot),
        });
        let picked = match endpoint {
            Some(address) => find_local(&export, port.protocol, port.port, address).is_ok(),
            None => {
                let request = LocalRequest {
                    protocol: port.protocol,
                    port: port.port,
                    family: None,
                    from: &self.from,
                    client: None,
                };
                pick_local(&snapshot, &export, request, &BTreeSet::new(), &mut scene.rng).is_ok()
            }
        };
        (picked, true)
    }

    /// Begins a flow to `service`; None when it is no import here, or too many are being opened.
    pub fn open(&mut self, service: &ServiceKey, scene: &mut Scene) -> Option<u64> {
        let snapshot = self
            .snapshot
            .clone()
            .filter(|_| self.is_up && self.flows.len() < FLOWS_MAX)?;
        let import = snapshot.imports.get(service)?;
        let signals = Signals {
            links: self.links.links(),
            ..Signals::default()
        };
        let port = import.spec.ports.first()?;
        let flow = NewFlow {
            snapshot: &snapshot,
            import,
            port,
            endpoint: None,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            from: &self.from,
            signals: &signals,
        };
        let hops = hops(flow, &mut scene.rng);
        if hops.is_empty() {
            let plan = plan(&snapshot, import, port, None, &self.from, &signals);
            let ends = |(id, imported): (&ClusterId, &ImportedCluster)| {
                (
                    id.clone(),
                    imported
                        .slices
                        .iter()
                        .map(|slice| slice.endpoints.len())
                        .sum::<usize>(),
                )
            };
            let clusters: Vec<(ClusterId, usize)> = import.clusters.iter().map(ends).collect();
            let left_out = plan.left_out;
            scene.note(format_args!(
                "nothing serves {service} on port {}: {clusters:?}, {left_out:?}",
                port.port
            ));
        }
        let through = hops.iter().filter_map(|hop| match hop {
            Hop::Remote { cluster, .. } => Some(cluster.clone()),
            Hop::Local(_) => None,
        });
        let (from, key, through) = (self.number, service.clone(), through.collect());
        scene.note(format_args!(
            "gateway {from} routes {key} over {through:?}, {} hops",
            hops.len()
        ));
        scene.facts.push(Fact::Routed {
            from,
            key,
            hops: through,
            snapshot: Arc::clone(&snapshot),
        });
        self.counter += 1;
        let dispatch = Dispatch::new(hops.len(), scene.instant());
        let flow = Flow {
            service: service.clone(),
            port: port.port,
            hops,
            dispatch,
            outcome: Outcome::Pending,
        };
        self.flows.insert(self.counter, flow);
        Some(self.counter)
    }

    /// Asks another cluster for a service as a gateway would that never looked at a grant.
    pub fn probe(&mut self, peer: usize, service: &ServiceKey, port: u16, scene: &mut Scene) {
        let to_peer = self.tunnels.iter().find(|(_, tunnel)| tunnel.peer == peer);
        if let Some((tunnel, cluster)) = to_peer.map(|(id, tunnel)| (*id, tunnel.cluster.clone())) {
            let open = Packet::Open {
                tunnel,
                flow: 0,
                hop: 0,
                service: service.clone(),
                port,
                endpoint: None,
            };
            self.send(peer, &cluster, open, scene);
        }
    }

    /// What became of a flow; it is forgotten once it is decided.
    pub fn outcome(&mut self, flow: u64) -> Outcome {
        let outcome = self.flows.get(&flow).map_or(Outcome::Failed, |flow| flow.outcome);
        if outcome != Outcome::Pending {
            self.flows.remove(&flow);
        }
        outcome
    }

    pub(super) fn tend_flows(&mut self, scene: &mut Scene) {
        let ids: Vec<u64> = self.flows.keys().copied().collect();
        for id in ids {
            while let Some(flow) = self
                .flows
                .get_mut(&id)
                .filter(|flow| flow.outcome == Outcome::Pending)
            {
                match flow.dispatch.poll(scene.instant()) {
                    Step::Wait(_) => break,
                    Step::GiveUp => flow.outcome = Outcome::Failed,
                    Step::Try(hop) => self.try_hop(id, hop, scene),
                }
            }
        }
    }

    pub(super) fn try_hop(&mut self, id: u64, hop: usize, scene: &mut Scene) {
        let now = scene.instant();
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let Some(Hop::Remote { cluster, endpoint }) = flow.hops.get(hop).cloned() else {
            flow.outcome = Outcome::Connected;
            return;
        };
        let tunnel = self.links.tunnels(&cluster).first().copied();
        let found = tunnel.and_then(|id| Some((id, self.tunnels.get(&id)?.peer)));
        flow.dispatch.on_begun(
            hop,
            self.links.links().get(&cluster).and_then(|link| link.rtt),
            now,
        );
        match found {
            Some((tunnel, peer)) => {
                let (service, port) = (flow.service.clone(), flow.port);
                self.send(
                    peer,
                    &cluster,
                    Packet::Open {
                        tunnel,
                        flow: id,
                        hop,
                        service,
                        port,
                        endpoint,
                    },
                    scene,
                );
            }
            None => flow.dispatch.on_failed(hop, true),
        }
    }
}
