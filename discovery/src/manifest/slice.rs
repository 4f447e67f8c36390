//! `discovery.k8s.io/v1` EndpointSlice.

use std::collections::BTreeSet;

use serde::Deserialize;
use tombolo_clusterset::endpoint::IpFamily;
use tombolo_clusterset::{Endpoint, EndpointSlice, Label, Readiness, ServiceKey, ServiceName, SlicePort};

use super::documents::Document;
use super::scalar::{
    BackendAddress, Family, Meta, ObjectName, PortName, PortNumber, ShortText, Transport, at,
};

/// Most endpoints of a slice (the API's limit).
const MAX_ENDPOINTS: usize = 1_000;

/// The label that binds a slice to its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// An EndpointSlice and the Service it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceManifest {
    /// Line at which the document begins.
    pub line: u32,
    /// The Service named by its label.
    pub service: ServiceKey,
    /// The slice.
    pub slice: EndpointSlice,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    metadata: Meta<ObjectName>,
    address_type: Family,
    #[serde(default)]
    ports: Option<Vec<Port>>,
    #[serde(default)]
    endpoints: Option<Vec<RawEndpoint>>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    name: Option<PortName>,
    #[serde(default)]
    protocol: Option<Transport>,
    port: PortNumber,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    addresses: Vec<BackendAddress>,
    #[serde(default)]
    conditions: Option<Conditions>,
    #[serde(default)]
    hostname: Option<Label>,
    #[serde(default)]
    zone: Option<ShortText>,
    #[serde(default)]
    node_name: Option<ShortText>,
}

#[derive(Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    serving: Option<bool>,
    #[serde(default)]
    terminating: Option<bool>,
}

impl Conditions {
    /// `ready` unset means ready, `serving` unset means as ready says (discovery/v1 EndpointConditions).
    fn readiness(&self) -> Readiness {
        let ready = self.ready.unwrap_or(true);
        let serving = self.serving.unwrap_or(ready);
        match (ready, serving, self.terminating.unwrap_or(false)) {
            (_, true, true) => Readiness::Terminating,
            (true, _, _) => Readiness::Ready,
            (false, _, _) => Readiness::NotReady,
        }
    }
}

pub(super) fn read(document: &Document<'_>) -> Result<SliceManifest, (u32, String)> {
    let raw: Raw = document.parse()?;
    let name = raw.metadata.name.0.clone();
    let service = at(document, service_of(&raw.metadata))?;
    let ports: Vec<SlicePort> = raw.ports.unwrap_or_default().into_iter().map(port).collect();
    let names: BTreeSet<(&str, _)> = ports
        .iter()
        .map(|port| (port.name.as_str(), port.protocol))
        .collect();
    if names.len() != ports.len() {
        return at(
            document,
            Err(format!(
                "EndpointSlice {name} has two ports of one name; names must differ"
            )),
        );
    }
    let endpoints = raw.endpoints.unwrap_or_default();
    if endpoints.len() > MAX_ENDPOINTS {
        let reason = format!(
            "EndpointSlice {name} has {} endpoints; at most {MAX_ENDPOINTS} are allowed: split it",
            endpoints.len()
        );
        return at(document, Err(reason));
    }
    let family = raw.address_type.0;
    let endpoints = endpoints
        .into_iter()
        .map(|raw| endpoint(&name, family, raw))
        .collect::<Result<Vec<_>, _>>();
    let endpoints = at(document, endpoints)?;
    let addresses: BTreeSet<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    if addresses.len() != endpoints.len() {
        return at(
            document,
            Err(format!("EndpointSlice {name} has one address in two endpoints")),
        );
    }
    Ok(SliceManifest {
        line: document.first_line(),
        service,
        slice: EndpointSlice {
            name,
            family,
            ports,
            endpoints,
        },
    })
}

fn service_of(meta: &Meta<ObjectName>) -> Result<ServiceKey, String> {
    let name = &meta.name.0;
    let label = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_LABEL))
        .ok_or_else(|| {
            format!("EndpointSlice {name} belongs to no Service; give it the label {SERVICE_LABEL}: NAME")
        })?;
    let service = ServiceName::parse(label)
        .map_err(|error| format!("EndpointSlice {name}, label {SERVICE_LABEL}: {error}"))?;
    Ok(ServiceKey::new(meta.namespace.clone(), service))
}

fn port(raw: Port) -> SlicePort {
    SlicePort {
        name: raw.name.unwrap_or_default().0,
        protocol: raw.protocol.unwrap_or_default().0,
        port: raw.port.0,
    }
}

/// The addresses of one endpoint are fungible (discovery/v1): like kube-proxy we use the first.
fn endpoint(slice: &str, family: IpFamily, raw: RawEndpoint) -> Result<Endpoint, String> {
    let Some(BackendAddress(address)) = raw.addresses.first().copied() else {
        return Err(format!(
            "EndpointSlice {slice} has an endpoint without an address"
        ));
    };
    if IpFamily::of(address) != family {
        return Err(format!(
            "EndpointSlice {slice} has addressType {} and the address {address}",
            family.as_str()
        ));
    }
    Ok(Endpoint {
        address,
        readiness: raw.conditions.unwrap_or_default().readiness(),
        hostname: raw.hostname,
        zone: raw.zone.unwrap_or_default().0,
        node: raw.node_name.unwrap_or_default().0,
    })
}
