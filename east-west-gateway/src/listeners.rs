//! Where this gateway listens for clients of its own cluster: every (VIP, port) of every import, and the stand-ins of
//! headless endpoints on other networks.

use std::collections::BTreeMap;

use tombolo_clusterset::Snapshot;
use tombolo_clusterset::places::{Place, Target, places_of};

/// Most listeners of one gateway: 10,000 services with a port or two and the stand-ins of a few hundred headless endpoints
/// fit; a file descriptor each. Those beyond it are not bound, and the gateway says so.
pub const LISTENERS_MAX: usize = 32_768;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use tombolo_clusterset::endpoint::Protocol::{self, Tcp, Udp};

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
}
