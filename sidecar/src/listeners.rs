//! Where this sidecar listens: the places of every import, moved from the agent's VIP range into its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tombolo_clusterset::Snapshot;
use tombolo_clusterset::places::{Place, Target, places_of};

use crate::config::Mirror;

/// Most listeners of one sidecar, a file descriptor each: the services one workload may call, with a port or two, when its
/// interest is the whole clusterset. Those beyond it are not bound, and the sidecar says so.
pub const LISTENERS_MAX: usize = 16_384;

/// What a snapshot asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By the address to listen on, at most [`LISTENERS_MAX`].
    pub places: BTreeMap<Place, Target>,
    /// Places that no listener can stand for: their VIP is outside the agent's range.
    pub outside: usize,
    /// Places beyond [`LISTENERS_MAX`].
    pub too_many: usize,
}

/// Every listener that `snapshot` asks for.
#[must_use]
pub fn wanted(snapshot: &Snapshot, mirror: Mirror) -> Wanted {
    let mut wanted = Wanted::default();
    for (place, target) in snapshot.imports.values().flat_map(|import| places_of(import)) {
        let Some(address) = mirror.listener(place.address.ip()) else {
            wanted.outside += 1;
            continue;
        };
        if wanted.places.len() >= LISTENERS_MAX {
            wanted.too_many += 1;
            continue;
        }
        let place = Place {
            address: SocketAddr::new(address, place.address.port()),
            ..place
        };
        // Two imports never share an address; should they, the first service by name keeps it in every sidecar.
        wanted.places.entry(place).or_insert(target);
    }
    wanted
}

/// Every import's places as the agent allocated them: what a captured connection was meant for, by its original destination.
#[must_use]
pub fn places(snapshot: &Snapshot) -> BTreeMap<Place, Target> {
    snapshot
        .imports
        .values()
        .flat_map(|import| places_of(import))
        .collect()
}

#[cfg(test)]
mod tests {
    use tombolo_clusterset::endpoint::Protocol;

    use super::*;
    use crate::fixtures::{self, cluster, key};

    fn place(text: &str) -> Place {
        Place {
            address: text.parse().unwrap(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn each_place_moves_into_the_own_range() {
        let range = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
        let mirror = Mirror::new(range("127.11.64.0/20"), range("127.11.80.0/20")).unwrap();
        let snapshot = fixtures::snapshot();
        let found = wanted(&snapshot, mirror);
        let addresses: Vec<String> = found
            .places
            .keys()
            .map(|place| place.address.to_string())
            .collect();
        assert_eq!(
            addresses,
            [
                "127.11.80.1:80",
                "127.11.80.2:80",
                "127.11.80.9:5432",
                "127.11.80.10:5432"
            ]
        );
        let db = &found.places[&place("127.11.80.9:5432")];
        assert_eq!(db.endpoint, Some((cluster("gke"), "10.0.0.7".parse().unwrap())));
        assert_eq!((found.outside, found.too_many), (0, 0));

        let elsewhere = Mirror::new(range("127.99.64.0/20"), range("127.11.80.0/20")).unwrap();
        assert_eq!(
            wanted(&snapshot, elsewhere),
            Wanted {
                outside: 4,
                ..Wanted::default()
            }
        );
    }

    #[test]
    fn a_captured_connection_is_known_by_its_destination() {
        let snapshot = fixtures::snapshot();
        let places = places(&snapshot);
        let service = |address| places.get(&place(address)).map(|target| target.service.clone());
        assert_eq!(service("127.11.64.1:80"), Some(key("shop/checkout")));
        assert_eq!(service("127.11.64.10:5432"), Some(key("shop/db")));
        assert_eq!(service("127.11.64.1:81"), None);
    }
}
