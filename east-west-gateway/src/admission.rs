//! What a peer may reach: exported ports of this cluster, and nothing else (DESIGN §4.13).
//!
//! The answer comes from the snapshot's exports alone, never from its merged imports: a flow that crossed one tunnel cannot
//! be sent through a second one, so that two gateways cannot pass it round in a loop.

use std::net::IpAddr;
use std::sync::Arc;

use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::snapshot::LocalExport;
use tombolo_clusterset::{ClusterId, ServiceKey, ServicePort, Snapshot};
use tombolo_tunnel::Refusal;

/// What a flow asks for, and who asks.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The cluster that the peer's certificate names.
    pub peer: &'a ClusterId,
    /// Which service.
    pub service: &'a ServiceKey,
    /// Its service port.
    pub port: u16,
    /// Its transport, which is also the flow's.
    pub protocol: Protocol,
    /// This endpoint and no other (headless).
    pub endpoint: Option<IpAddr>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Forward it.
    Admit {
        /// The export it goes to.
        export: Arc<LocalExport>,
        /// The port of that export.
        port: ServicePort,
        /// This endpoint and no other.
        only: Option<IpAddr>,
    },
    /// Say no.
    Refuse {
        /// The reason on the wire.
        refusal: Refusal,
        /// A sentence for the operator of the calling cluster. It names nothing that the caller did not ask for.
        detail: String,
    },
}

/// Decides about one flow.
///
/// The order of the checks is a promise: whoever has no grant learns nothing about ports and endpoints.
#[must_use]
pub fn admit(request: Request<'_>, snapshot: &Snapshot) -> Admission {
    let Request {
        peer,
        service,
        port,
        protocol,
        endpoint,
    } = request;
    let here = &snapshot.cluster;
    if !snapshot.clusters.contains_key(peer) {
        return refuse(
            Refusal::NotGranted,
            format!("{peer} is no member of the clusterset as {here} knows it"),
        );
    }
    let Some(export) = snapshot.exports.get(service) else {
        return refuse(
            Refusal::NotExported,
            format!("{here} does not export {service}; create a ServiceExport there"),
        );
    };
    // The exporter itself always may: its sidecars come through here too.
    if peer != here
        && export
            .granted
            .as_ref()
            .is_some_and(|granted| !granted.contains(peer))
    {
        return refuse(
            Refusal::NotGranted,
            format!("{here} does not grant {service} to {peer}; add it to the grant"),
        );
    }
    let exported = export
        .spec
        .ports
        .iter()
        .find(|own| own.port == port && own.protocol == protocol);
    let Some(exported) = exported.filter(|_| protocol != Protocol::Sctp) else {
        return refuse(
            Refusal::NotExported,
            format!("{service} of {here} has no port {port}/{protocol}"),
        );
    };
    if let Some(address) = endpoint
        && !serves(export, exported, address)
    {
        return refuse(
            Refusal::NoEndpoint,
            format!("{address} is no endpoint of {service} in {here}"),
        );
    }
    Admission::Admit {
        export: Arc::clone(export),
        port: exported.clone(),
        only: endpoint,
    }
}

fn refuse(refusal: Refusal, detail: String) -> Admission {
    Admission::Refuse { refusal, detail }
}

fn serves(export: &LocalExport, port: &ServicePort, address: IpAddr) -> bool {
    export
        .slices
        .iter()
        .filter(|slice| slice.port(&port.name, port.protocol).is_some())
        .any(|slice| slice.endpoints.iter().any(|endpoint| endpoint.address == address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    /// (peer, service, port, protocol, endpoint) to the expected refusal; None: admitted.
    type Row = (
        &'static str,
        &'static str,
        u16,
        Protocol,
        Option<&'static str>,
        Option<Refusal>,
    );

    #[test]
    fn only_what_is_exported_and_granted_is_reachable() {
        use Protocol::{Sctp, Tcp, Udp};
        let table: &[Row] = &[
            ("kind", "shop/checkout", 80, Tcp, None, None),
            ("kind", "shop/checkout", 53, Udp, None, None),
            ("kind", "shop/checkout", 80, Udp, None, Some(Refusal::NotExported)),
            ("kind", "shop/checkout", 53, Tcp, None, Some(Refusal::NotExported)),
            (
                "kind",
                "shop/checkout",
                80,
                Sctp,
                None,
                Some(Refusal::NotExported),
            ),
            (
                "kind",
                "shop/checkout",
                8080,
                Tcp,
                None,
                Some(Refusal::NotExported),
            ),
            ("kind", "shop/hidden", 80, Tcp, None, Some(Refusal::NotExported)),
            ("kind", "shop/private", 80, Tcp, None, Some(Refusal::NotGranted)),
            ("gke", "shop/private", 80, Tcp, None, None),
            ("aks", "shop/private", 80, Tcp, None, None),
            // No grant: not even the ports are told.
            ("kind", "shop/private", 81, Tcp, None, Some(Refusal::NotGranted)),
            (
                "stranger",
                "shop/checkout",
                80,
                Tcp,
                None,
                Some(Refusal::NotGranted),
            ),
            ("kind", "shop/db", 5432, Tcp, Some("127.0.0.1"), None),
            ("kind", "shop/db", 5432, Tcp, None, None),
            (
                "kind",
                "shop/db",
                5432,
                Tcp,
                Some("127.0.0.9"),
                Some(Refusal::NoEndpoint),
            ),
            // An endpoint of another export of this cluster is no way round the export.
            (
                "kind",
                "shop/db",
                5432,
                Tcp,
                Some("127.0.0.2"),
                Some(Refusal::NoEndpoint),
            ),
            // Imported here from elsewhere, not exported here: a loop if it were admitted.
            (
                "kind",
                "shop/elsewhere",
                80,
                Tcp,
                None,
                Some(Refusal::NotExported),
            ),
        ];
        let snapshot = fixtures::snapshot();
        for (peer, service, port, protocol, endpoint, expected) in table {
            let peer = ClusterId::parse(peer).unwrap();
            let service = ServiceKey::parse(service).unwrap();
            let request = Request {
                peer: &peer,
                service: &service,
                port: *port,
                protocol: *protocol,
                endpoint: endpoint.map(|text| text.parse().unwrap()),
            };
            let got = match admit(request, &snapshot) {
                Admission::Admit {
                    export,
                    port: admitted,
                    only,
                } => {
                    assert_eq!(
                        (&export.key, admitted.port, admitted.protocol),
                        (&service, *port, *protocol)
                    );
                    assert_eq!(only, request.endpoint);
                    None
                }
                Admission::Refuse { refusal, detail } => {
                    assert!(!detail.is_empty());
                    Some(refusal)
                }
            };
            assert_eq!(got, *expected, "{request:?}");
        }
    }
}
