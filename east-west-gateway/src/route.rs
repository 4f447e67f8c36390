//! Where a new flow goes, and when it is sent elsewhere.
//!
//! [`hops`] orders the ways to a backend: an endpoint of this cluster, or another cluster through its gateway, which chooses
//! an endpoint of its own. [`tombolo_clusterset::dispatch`] tries them in that order until one says *connected*; [`may_move`]
//! tells which refusals end that.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::select::{self, Signals};
use tombolo_clusterset::{ClusterId, Import, Locality, ServicePort, Snapshot};
use tombolo_tunnel::Refusal;

/// Most endpoints of the own cluster that one flow tries: when five in a row refuse, the sixth is not the remedy, and another
/// cluster is.
pub const LOCAL_HOPS_MAX: usize = 5;

/// One way to a backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// Straight to an endpoint of this cluster.
    Local(SocketAddr),
    /// Through a tunnel to a gateway of that cluster.
    Remote {
        /// Which cluster.
        cluster: ClusterId,
        /// Headless: this endpoint and no other.
        endpoint: Option<IpAddr>,
    },
}

/// A new flow, and what is known when it comes.
#[derive(Debug, Clone, Copy)]
pub struct NewFlow<'a> {
    /// The view of this cluster.
    pub snapshot: &'a Snapshot,
    /// The service it is for.
    pub import: &'a Import,
    /// The port of it.
    pub port: &'a ServicePort,
    /// Headless: this endpoint of this cluster and no other.
    pub endpoint: Option<&'a (ClusterId, IpAddr)>,
    /// The client.
    pub client: IpAddr,
    /// Where this gateway stands.
    pub from: &'a Locality,
    /// Links, ejected endpoints, and what a drill hides.
    pub signals: &'a Signals,
}

/// The hops of a flow, first the one drawn. Empty: nothing serves it.
///
/// A remote cluster is one hop however many endpoints it has. With `sessionAffinity: ClientIP` a client gets the same order
/// each time.
#[must_use]
pub fn hops(flow: NewFlow<'_>, rng: &mut impl rand::Rng) -> Vec<Hop> {
    let NewFlow {
        snapshot,
        import,
        port,
        endpoint,
        client,
        from,
        signals,
    } = flow;
    if let Some((cluster, address)) = endpoint {
        return vec![Hop::Remote {
            cluster: cluster.clone(),
            endpoint: Some(*address),
        }];
    }
    let plan = select::plan(snapshot, import, port, None, from, signals);
    let sticky = (import.spec.session_affinity == SessionAffinity::ClientIp).then_some(client);
    let mut seen = BTreeSet::new();
    let mut local = 0;
    let mut hops = Vec::new();
    for candidate in select::draw_for(&plan, sticky, rng) {
        if candidate.cluster == snapshot.cluster {
            local += 1;
            if local <= LOCAL_HOPS_MAX {
                hops.push(Hop::Local(SocketAddr::new(
                    candidate.endpoint.address,
                    candidate.port,
                )));
            }
        } else if seen.insert(&candidate.cluster) {
            hops.push(Hop::Remote {
                cluster: candidate.cluster.clone(),
                endpoint: None,
            });
        }
    }
    hops
}

/// Whether a flow refused for this reason may be tried at another cluster. Each cluster judges its own export, so another
/// may well say yes; only a forged header is wrong everywhere.
#[must_use]
pub fn may_move(refusal: Refusal) -> bool {
    match refusal {
        Refusal::NoEndpoint | Refusal::BackendRefused | Refusal::Draining | Refusal::Overloaded => true,
        // A snapshot that is a moment old on either side says so too.
        Refusal::NotExported | Refusal::NotGranted => true,
        Refusal::Forged => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tombolo_clusterset::endpoint::Protocol;
    use tombolo_clusterset::{Link, LinkState};

    use super::*;
    use crate::fixtures;

    fn remote(cluster: &str) -> Hop {
        Hop::Remote {
            cluster: fixtures::cluster(cluster),
            endpoint: None,
        }
    }

    fn local(address: &str) -> Hop {
        Hop::Local(address.parse().unwrap())
    }

    fn check(service: &str, (protocol, number): (Protocol, u16), signals: &Signals, expected: &[Hop]) {
        let snapshot = fixtures::snapshot();
        let import = &snapshot.imports[&fixtures::key(service)];
        let flow = NewFlow {
            snapshot: &snapshot,
            import,
            port: import.port(protocol, number).unwrap(),
            endpoint: None,
            client: fixtures::address("127.11.1.1"),
            from: &Locality::default(),
            signals,
        };
        for seed in 0..20 {
            assert_eq!(
                hops(flow, &mut StdRng::seed_from_u64(seed)),
                expected,
                "{service} {number}"
            );
        }
    }

    fn links(states: &[(&str, LinkState, u64)]) -> Signals {
        let link = |state, rtt| Link {
            state,
            rtt: Some(Duration::from_millis(rtt)),
            both_lost_for: None,
        };
        let links = states
            .iter()
            .map(|(id, state, rtt)| (fixtures::cluster(id), link(*state, *rtt)));
        Signals {
            links: links.collect(),
            ..Signals::default()
        }
    }

    #[test]
    fn own_endpoints_first_then_clusters_by_rtt_and_each_once() {
        use LinkState::{Suspect, Up};
        let http = (Protocol::Tcp, 80);
        let here = local("127.0.0.2:8080");
        let near_gke = links(&[("gke", Up, 5), ("kind", Up, 20)]);
        let near_kind = links(&[("gke", Up, 20), ("kind", Up, 5)]);
        let gke_suspect = links(&[("gke", Suspect, 5), ("kind", Up, 20)]);
        check(
            "shop/checkout",
            http,
            &near_gke,
            &[here.clone(), remote("gke"), remote("kind")],
        );
        check(
            "shop/checkout",
            http,
            &near_kind,
            &[here.clone(), remote("kind"), remote("gke")],
        );
        check(
            "shop/checkout",
            http,
            &gke_suspect,
            &[here, remote("kind"), remote("gke")],
        );
        // kind does not expose the UDP port.
        check(
            "shop/checkout",
            (Protocol::Udp, 53),
            &near_kind,
            &[local("127.0.0.2:5353"), remote("gke")],
        );
        check("shop/elsewhere", http, &near_gke, &[remote("kind")]);
        // A drill hides the local endpoints from its own flows.
        let hidden = Signals {
            hidden: BTreeSet::from([fixtures::cluster("aks")]),
            ..near_gke
        };
        check("shop/checkout", http, &hidden, &[remote("gke"), remote("kind")]);
    }

    #[test]
    fn a_stand_in_has_one_hop() {
        let snapshot = fixtures::snapshot();
        let import = &snapshot.imports[&fixtures::key("shop/db")];
        let pinned = (fixtures::cluster("kind"), fixtures::address("10.9.0.2"));
        let flow = NewFlow {
            snapshot: &snapshot,
            import,
            port: &import.spec.ports[0],
            endpoint: Some(&pinned),
            client: fixtures::address("127.11.1.1"),
            from: &Locality::default(),
            signals: &Signals::default(),
        };
        let expected = Hop::Remote {
            cluster: pinned.0.clone(),
            endpoint: Some(pinned.1),
        };
        assert_eq!(hops(flow, &mut StdRng::seed_from_u64(1)), [expected]);
    }

    #[test]
    fn only_a_forged_header_is_wrong_everywhere() {
        let wrong: Vec<Refusal> = Refusal::ALL
            .into_iter()
            .filter(|refusal| !may_move(*refusal))
            .collect();
        assert_eq!(wrong, [Refusal::Forged]);
    }
}
