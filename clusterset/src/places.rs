//! Where the services of a snapshot are listened for without Kubernetes: every (VIP, port) of every import, and the stand-ins
//! of headless endpoints on other networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::endpoint::Protocol;
use crate::export::ServiceType;
use crate::name::{ClusterId, ServiceKey};
use crate::snapshot::Import;

/// One place to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// VIP or stand-in, and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// What a place stands for.
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
    /// Accept nothing more there. Flows that run end by themselves.
    Unbind(Place),
}

/// The places of one import, in the order of its ports. SCTP has none.
#[must_use]
pub fn places_of(import: &Import) -> Vec<(Place, Target)> {
    match import.spec.service_type {
        ServiceType::ClusterSetIp => vip_places(import),
        ServiceType::Headless => stand_in_places(import),
    }
}

/// The actions from what is bound to what is wanted, unbinds first so that descriptors are free.
#[must_use]
pub fn reconcile(bound: &BTreeMap<Place, Target>, wanted: &BTreeMap<Place, Target>) -> Vec<Action> {
    let gone = bound.keys().filter(|place| !wanted.contains_key(place));
    let changes = wanted
        .iter()
        .filter_map(|(place, target)| match bound.get(place) {
            None => Some(Action::Bind(*place, target.clone())),
            Some(old) if old != target => Some(Action::Retarget(*place, target.clone())),
            Some(_) => None,
        });
    gone.map(|place| Action::Unbind(*place)).chain(changes).collect()
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
            let service = import.key.clone();
            places.push((
                place,
                Target {
                    service,
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
                let service = import.key.clone();
                let endpoint = Some((cluster.clone(), endpoint.address));
                places.push((
                    place,
                    Target {
                        service,
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
    use crate::fixtures::{World, endpoint, id};

    fn place(text: &str) -> Place {
        Place {
            address: text.parse().unwrap(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn a_vip_stands_for_its_service_and_a_stand_in_for_its_endpoint() {
        let mut world = World::new().serves("gke", vec![endpoint("10.0.0.7", "")]);
        world.import.ips = vec!["127.11.64.1".parse().unwrap()];
        let service = world.import.key.clone();
        let target = Target {
            service,
            port: 80,
            endpoint: None,
        };
        assert_eq!(
            places_of(&world.import),
            [(place("127.11.64.1:80"), target.clone())]
        );

        world.import.spec.service_type = ServiceType::Headless;
        assert_eq!(places_of(&world.import), []);
        let remote: IpAddr = "10.0.0.7".parse().unwrap();
        let imported = world.import.clusters.get_mut("gke").unwrap();
        imported.stand_ins.insert(remote, "127.11.64.9".parse().unwrap());
        let target = Target {
            endpoint: Some((id("gke"), remote)),
            ..target
        };
        assert_eq!(places_of(&world.import), [(place("127.11.64.9:8080"), target)]);
    }

    #[test]
    fn reconciling_twice_gives_no_action() {
        let target = |port| Target {
            service: ServiceKey::parse("shop/checkout").unwrap(),
            port,
            endpoint: None,
        };
        let bound = BTreeMap::from([
            (place("127.0.0.1:1"), target(1)),
            (place("127.0.0.1:2"), target(2)),
        ]);
        let wanted = BTreeMap::from([
            (place("127.0.0.1:2"), target(3)),
            (place("127.0.0.1:4"), target(4)),
        ]);
        let actions = [
            Action::Unbind(place("127.0.0.1:1")),
            Action::Retarget(place("127.0.0.1:2"), target(3)),
            Action::Bind(place("127.0.0.1:4"), target(4)),
        ];
        assert_eq!(reconcile(&bound, &wanted), actions);
        assert_eq!(reconcile(&wanted, &wanted), []);
    }
}
