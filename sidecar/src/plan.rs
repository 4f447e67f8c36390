//! Where a new flow goes: the ways to a backend, in the order in which they are tried.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::select::{self, Signals};
use tombolo_clusterset::{ClusterId, Import, Locality, Readiness, ServiceKey, ServicePort, Snapshot};
use tombolo_tunnel::Refusal;

/// Most endpoints of the own cluster that one flow tries: when five in a row refuse, the sixth is not the remedy, and another
/// cluster is.
pub const LOCAL_ATTEMPTS_MAX: usize = 5;

/// The annotation by which a cluster says that every endpoint of its export ends the clusterset's mTLS in a sidecar. It stands
/// in the ServiceExport's `exportedAnnotations`.
pub const MTLS_ANNOTATION: &str = "tombolo.io/mtls";

/// Its one value that counts.
pub const MTLS_REQUIRED: &str = "required";

/// One way to a backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attempt {
    /// Straight to an endpoint of this cluster.
    Endpoint {
        /// Where.
        address: SocketAddr,
        /// Whether it must prove to be a workload of this cluster; there is no way back to plain.
        mtls: bool,
    },
    /// Through a tunnel of our own to a gateway of that cluster.
    Cluster {
        /// Which.
        cluster: ClusterId,
        /// Headless: this endpoint and no other.
        endpoint: Option<IpAddr>,
    },
    /// To the gateway of this cluster, which chooses the cluster by itself. It says *connected* before it has a backend, so
    /// nothing is tried after it has.
    OwnGateway(SocketAddr),
}

impl Attempt {
    /// The other cluster whose link it depends on.
    #[must_use]
    pub fn cluster(&self) -> Option<&ClusterId> {
        match self {
            Self::Cluster { cluster, .. } => Some(cluster),
            Self::Endpoint { .. } | Self::OwnGateway(_) => None,
        }
    }
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
    /// Where the workload runs.
    pub from: &'a Locality,
    /// Links, ejected endpoints.
    pub signals: &'a Signals,
}

/// The attempts of a flow, first the one drawn. Empty: nothing serves it.
///
/// A remote cluster is one attempt however many endpoints it has: its own gateway chooses. A cluster that can be dialled is;
/// all others share one attempt through the own gateway, which also comes last where direct dials may be blocked on the way.
#[must_use]
pub fn attempts(flow: NewFlow<'_>, rng: &mut impl rand::Rng) -> Vec<Attempt> {
    match flow.endpoint {
        Some((cluster, address)) => to_endpoint(flow, cluster, *address),
        None => to_service(flow, rng),
    }
}

fn to_service(flow: NewFlow<'_>, rng: &mut impl rand::Rng) -> Vec<Attempt> {
    let NewFlow {
        snapshot,
        import,
        port,
        client,
        from,
        signals,
        ..
    } = flow;
    let plan = select::plan(snapshot, import, port, None, from, signals);
    let sticky = (import.spec.session_affinity == SessionAffinity::ClientIp).then_some(client);
    let mtls = endpoints_end_mtls(snapshot, &import.key);
    let via_gateway = import
        .ips
        .first()
        .map(|vip| Attempt::OwnGateway(SocketAddr::new(*vip, port.port)));
    let mut seen = BTreeSet::new();
    let mut local = 0;
    let mut attempts = Vec::new();
    for candidate in select::draw_for(&plan, sticky, rng) {
        if candidate.cluster == snapshot.cluster {
            local += 1;
            if local <= LOCAL_ATTEMPTS_MAX {
                let address = SocketAddr::new(candidate.endpoint.address, candidate.port);
                attempts.push(Attempt::Endpoint { address, mtls });
            }
        } else if seen.insert(&candidate.cluster) {
            let attempt = match is_dialable(snapshot, &candidate.cluster) {
                true => Some(Attempt::Cluster {
                    cluster: candidate.cluster.clone(),
                    endpoint: None,
                }),
                false => via_gateway.clone(),
            };
            attempts.extend(attempt.filter(|attempt| !attempts.contains(attempt)));
        }
    }
    if !seen.is_empty() {
        attempts.extend(via_gateway.filter(|last| !attempts.contains(last)));
    }
    attempts
}

/// A headless flow has one backend; only the way to it may vary. None when it is gone, or its cluster is no member any more.
fn to_endpoint(flow: NewFlow<'_>, cluster: &ClusterId, address: IpAddr) -> Vec<Attempt> {
    let NewFlow {
        snapshot,
        import,
        port,
        ..
    } = flow;
    let serving = import.clusters.get(cluster).and_then(|imported| {
        let mut serving = imported.endpoints(port, None);
        let found = serving
            .find(|(endpoint, _)| endpoint.address == address && endpoint.readiness != Readiness::NotReady);
        found.map(|(_, number)| (imported, number))
    });
    let Some((imported, number)) = serving else {
        return Vec::new();
    };
    if cluster == &snapshot.cluster {
        let mtls = endpoints_end_mtls(snapshot, &import.key);
        return vec![Attempt::Endpoint {
            address: SocketAddr::new(address, number),
            mtls,
        }];
    }
    let direct = is_dialable(snapshot, cluster).then(|| Attempt::Cluster {
        cluster: cluster.clone(),
        endpoint: Some(address),
    });
    let stand_in = imported.stand_ins.get(&address);
    let via_gateway = stand_in.map(|stand_in| Attempt::OwnGateway(SocketAddr::new(*stand_in, number)));
    direct.into_iter().chain(via_gateway).collect()
}

/// Whether the endpoints of this cluster are spoken to over mTLS. One rule: this cluster's own export says so by
/// [`MTLS_ANNOTATION`]. A guess from what once answered could be turned to plain by whoever can drop a packet, and another
/// cluster cannot know what our pods run.
#[must_use]
pub fn endpoints_end_mtls(snapshot: &Snapshot, service: &ServiceKey) -> bool {
    let export = snapshot.exports.get(service);
    let says = export.and_then(|export| export.spec.annotations.get(MTLS_ANNOTATION));
    says.is_some_and(|value| value == MTLS_REQUIRED)
}

fn is_dialable(snapshot: &Snapshot, cluster: &ClusterId) -> bool {
    snapshot
        .clusters
        .get(cluster)
        .is_some_and(|view| !view.gateways.is_empty())
}

/// Whether a flow refused for this reason may be tried elsewhere. Each cluster judges its own export, so another may well say
/// yes; only a forged header is wrong everywhere.
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
    use std::sync::Arc;
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tombolo_clusterset::{Link, LinkState};

    use super::*;
    use crate::fixtures::{self, cluster, key};

    fn endpoint(address: &str) -> Attempt {
        Attempt::Endpoint {
            address: address.parse().unwrap(),
            mtls: false,
        }
    }

    fn remote(id: &str) -> Attempt {
        Attempt::Cluster {
            cluster: cluster(id),
            endpoint: None,
        }
    }

    fn own_gateway(address: &str) -> Attempt {
        Attempt::OwnGateway(address.parse().unwrap())
    }

    fn links(states: &[(&str, LinkState, u64)]) -> Signals {
        let link = |state, rtt| Link {
            state,
            rtt: Some(Duration::from_millis(rtt)),
            both_lost_for: None,
        };
        let links = states
            .iter()
            .map(|(id, state, rtt)| (cluster(id), link(*state, *rtt)));
        Signals {
            links: links.collect(),
            ..Signals::default()
        }
    }

    fn of(
        snapshot: &Snapshot,
        service: &str,
        signals: &Signals,
        endpoint: Option<(&str, &str)>,
    ) -> Vec<Attempt> {
        let import = &snapshot.imports[&key(service)];
        let endpoint = endpoint.map(|(id, address)| (cluster(id), address.parse().unwrap()));
        let flow = NewFlow {
            snapshot,
            import,
            port: &import.spec.ports[0],
            endpoint: endpoint.as_ref(),
            client: "127.0.0.1".parse().unwrap(),
            from: &Locality::default(),
            signals,
        };
        let drawn: BTreeSet<_> = (0..20)
            .map(|seed| attempts(flow, &mut StdRng::seed_from_u64(seed)))
            .collect();
        assert_eq!(drawn.len(), 1, "these tables hold one endpoint per cluster");
        drawn.into_iter().next().unwrap_or_default()
    }

    #[test]
    fn own_endpoints_then_clusters_by_rtt_then_the_own_gateway() {
        use LinkState::{Suspect, Up};
        // gke and eks can be dialled, kind cannot.
        let snapshot = fixtures::snapshot();
        let here = endpoint("127.0.0.2:8080");
        let via = own_gateway("127.11.64.1:80");
        let all = [
            (
                links(&[("gke", Up, 5), ("eks", Up, 9)]),
                [&here, &remote("gke"), &remote("eks"), &via],
            ),
            (
                links(&[("gke", Up, 9), ("eks", Up, 5)]),
                [&here, &remote("eks"), &remote("gke"), &via],
            ),
            (
                links(&[("gke", Suspect, 5), ("eks", Up, 9)]),
                [&here, &remote("eks"), &via, &remote("gke")],
            ),
            // What cannot be dialled has its place too, and the gateway is tried once.
            (
                links(&[("kind", Up, 1), ("gke", Up, 5), ("eks", Up, 9)]),
                [&here, &via, &remote("gke"), &remote("eks")],
            ),
        ];
        for (signals, expected) in all {
            let expected: Vec<Attempt> = expected.into_iter().cloned().collect();
            assert_eq!(
                of(&snapshot, "shop/checkout", &signals, None),
                expected,
                "{signals:?}"
            );
        }
    }

    #[test]
    fn an_ejected_endpoint_is_left_out() {
        let snapshot = fixtures::snapshot();
        let mut signals = links(&[("gke", LinkState::Up, 5), ("eks", LinkState::Up, 9)]);
        signals
            .ejected
            .insert((cluster("home"), "127.0.0.2".parse().unwrap(), 8080));
        let expected = [remote("gke"), remote("eks"), own_gateway("127.11.64.1:80")];
        assert_eq!(of(&snapshot, "shop/checkout", &signals, None), expected);
    }

    #[test]
    fn nothing_but_own_endpoints_needs_no_gateway() {
        let snapshot = fixtures::snapshot();
        assert_eq!(
            of(&snapshot, "shop/local", &Signals::default(), None),
            [endpoint("127.0.0.3:8080")]
        );
    }

    #[test]
    fn a_headless_flow_varies_only_its_way() {
        let snapshot = fixtures::snapshot();
        let to = |id, address| of(&snapshot, "shop/db", &Signals::default(), Some((id, address)));
        let direct = Attempt::Cluster {
            cluster: cluster("gke"),
            endpoint: Some("10.0.0.7".parse().unwrap()),
        };
        assert_eq!(to("gke", "10.0.0.7"), [direct, own_gateway("127.11.64.9:5432")]);
        assert_eq!(to("kind", "10.0.0.7"), [own_gateway("127.11.64.10:5432")]);
        assert_eq!(to("home", "127.0.0.4"), [endpoint("127.0.0.4:5432")]);
        assert_eq!(to("gke", "10.0.0.8"), []);
        assert_eq!(to("nobody", "10.0.0.7"), []);
    }

    #[test]
    fn mtls_is_spoken_where_the_own_export_says_so() {
        let mut snapshot = fixtures::snapshot();
        for (value, expected) in [("required", true), ("true", false), ("", false)] {
            let export = snapshot.exports.get_mut(&key("shop/local")).unwrap();
            let annotations = &mut Arc::make_mut(export).spec.annotations;
            annotations.insert(MTLS_ANNOTATION.to_owned(), value.to_owned());
            let attempts = of(&snapshot, "shop/local", &Signals::default(), None);
            let address = "127.0.0.3:8080".parse().unwrap();
            assert_eq!(
                attempts,
                [Attempt::Endpoint {
                    address,
                    mtls: expected
                }],
                "{value}"
            );
        }
        assert!(!endpoints_end_mtls(&snapshot, &key("shop/checkout")));
    }

    #[test]
    fn only_a_forged_header_is_final() {
        for refusal in Refusal::ALL {
            assert_eq!(may_move(refusal), refusal != Refusal::Forged, "{refusal}");
        }
    }
}
