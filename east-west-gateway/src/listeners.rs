//! Where this gateway listens for clients of its own cluster: every (VIP, port) of every import, and the stand-ins of
//! headless endpoints on other networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::{ClusterId, Import, ServiceKey, ServiceType, Snapshot};

/// Most listeners of one gateway: 10,000 services with a port or two and the stand-ins of a few hundred headless endpoints
/// fit; a file descriptor each. Those beyond it are not bound, and the gateway says so.
pub const LISTENERS_MAX: usize = 32_768;

/// One place to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// VIP or stand-in, and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// What a listener stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which service.
    pub service: ServiceKey,
    /// Its service port.
    pub port: u16,
    /// Headless: this endpoint of this cluster and no other.
    pub endpoint: Option<(ClusterId, IpAddr)>,
}

/// What to do so that what is bound becomes what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Listen there.
    Bind(Place, Target),
    /// It is bound and stands for something else from now on: flows that run stay with what they had.
    Retarget(Place, Target),
    /// Accept nothing more there. Flows that run end by themselves; a UDP socket stays until its last flow has, since its
    /// replies leave from it.
    Unbind(Place),
}

/// Every place that `snapshot` asks for, at most [`LISTENERS_MAX`], with the number left out.
#[must_use]
pub fn wanted(snapshot: &Snapshot) -> (BTreeMap<Place, Target>, usize) {
    let mut places = BTreeMap::new();
    let mut left_out = 0;
    for (place, target) in snapshot.imports.values().flat_map(|import| places_of(import)) {
        if places.len() < LISTENERS_MAX {
            // Two imports never share an address; should they, the first service by name keeps it at every gateway.
            places.entry(place).or_insert(target);
        } else {
            left_out += 1;
        }
    }
    (places, left_out)
}

/// The actions from what is bound to what is wanted, unbinds first so that descriptors are free.
#[must_use]
pub fn reconcile(bound: &BTreeMap<Place, Target>, wanted: &BTreeMap<Place, Target>) -> Vec<Action> {
    let gone = bound
        .keys()
        .filter(|place| !wanted.contains_key(place))
        .map(|place| Action::Unbind(*place));
    let changes = wanted
        .iter()
        .filter_map(|(place, target)| match bound.get(place) {
            None => Some(Action::Bind(*place, target.clone())),
            Some(old) if old != target => Some(Action::Retarget(*place, target.clone())),
            Some(_) => None,
        });
    gone.chain(changes).collect()
}

fn places_of(import: &Import) -> Vec<(Place, Target)> {
    match import.spec.service_type {
        ServiceType::ClusterSetIp => vip_places(import),
        ServiceType::Headless => stand_in_places(import),
    }
}

fn vip_places(import: &Import) -> Vec<(Place, Target)> {
    let mut places = Vec::new();
    for ip in &import.ips {
        for port in import
            .spec
            .ports
            .iter()
            .filter(|port| port.protocol != Protocol::Sctp)
        {
            let place = Place {
                address: SocketAddr::new(*ip, port.port),
                protocol: port.protocol,
            };
            places.push((
                place,
                Target {
                    service: import.key.clone(),
                    port: port.port,
                    endpoint: None,
                },
            ));
        }
    }
    places
}

/// A headless name resolves to the endpoint itself, at the endpoint's own port: there is no translation, so a stand-in
/// listens on that port too.
fn stand_in_places(import: &Import) -> Vec<(Place, Target)> {
    let mut places = Vec::new();
    for (cluster, imported) in &import.clusters {
        for port in imported
            .ports
            .iter()
            .filter(|port| port.protocol != Protocol::Sctp)
        {
            for (endpoint, number) in imported.endpoints(port, None) {
                let Some(stand_in) = imported.stand_ins.get(&endpoint.address) else {
                    continue;
                };
                let place = Place {
                    address: SocketAddr::new(*stand_in, number),
                    protocol: port.protocol,
                };
                let endpoint = Some((cluster.clone(), endpoint.address));
                places.push((
                    place,
                    Target {
                        service: import.key.clone(),
                        port: port.port,
                        endpoint,
                    },
                ));
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use tombolo_clusterset::endpoint::Protocol::{Tcp, Udp};

    fn place(address: &str, protocol: Protocol) -> Place {
        Place {
            address: address.parse().unwrap(),
            protocol,
        }
    }

    fn target(service: &str, port: u16, endpoint: Option<&str>) -> Target {
        let endpoint = endpoint.map(|text| (fixtures::cluster("kind"), fixtures::address(text)));
        Target {
            service: fixtures::key(service),
            port,
            endpoint,
        }
    }

    #[test]
    fn every_import_has_its_places() {
        let expected = BTreeMap::from([
            (place("127.11.64.1:80", Tcp), target("shop/checkout", 80, None)),
            (place("127.11.64.1:53", Udp), target("shop/checkout", 53, None)),
            (place("127.11.64.2:80", Tcp), target("shop/elsewhere", 80, None)),
            (
                place("127.11.65.1:15432", Tcp),
                target("shop/db", 5432, Some("10.9.0.1")),
            ),
            (
                place("127.11.65.2:15432", Tcp),
                target("shop/db", 5432, Some("10.9.0.2")),
            ),
        ]);
        assert_eq!(wanted(&fixtures::snapshot()), (expected, 0));
    }

    #[test]
    fn reconciling_asks_for_the_difference_and_nothing_twice() {
        let a = place("127.11.64.1:80", Tcp);
        let b = place("127.11.64.2:80", Tcp);
        let c = place("127.11.64.3:80", Udp);
        let bound = BTreeMap::from([(a, target("shop/a", 80, None)), (b, target("shop/b", 80, None))]);
        let wanted = BTreeMap::from([(b, target("shop/b", 81, None)), (c, target("shop/c", 80, None))]);
        let actions = reconcile(&bound, &wanted);
        let expected = [
            Action::Unbind(a),
            Action::Retarget(b, target("shop/b", 81, None)),
            Action::Bind(c, target("shop/c", 80, None)),
        ];
        assert_eq!(actions, expected);
        assert_eq!(reconcile(&wanted, &wanted), []);
    }
}
