//! `v1` Service.

use std::collections::BTreeSet;

use serde::Deserialize;
use tombolo_clusterset::endpoint::IpFamily;
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::{ServiceKey, ServiceName, ServicePort};

use super::documents::Document;
use super::scalar::{Family, Meta, PortName, PortNumber, ShortText, Transport, at};

/// Most ports of a Service: the API's limit for the ports of an EndpointSlice.
const MAX_PORTS: usize = 100;

/// What the API server sets for `sessionAffinity: ClientIP` without a time, seconds (core/v1 ClientIPConfig).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// Longest affinity, seconds (core/v1 ClientIPConfig).
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// How a Service is reached, as far as an export depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// ClusterIP, NodePort or LoadBalancer with an address.
    ClusterIp,
    /// `clusterIP: None`.
    Headless,
    /// A DNS alias: cannot be exported.
    ExternalName,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceManifest {
    /// Line at which the document begins.
    pub line: u32,
    /// Which.
    pub key: ServiceKey,
    /// How it is reached.
    pub kind: ServiceKind,
    /// Its ports; names and (protocol, port) are unique.
    pub ports: Vec<ServicePort>,
    /// Families in the Service's order; empty when the manifest leaves them out.
    pub ip_families: Vec<IpFamily>,
    /// `sessionAffinity`.
    pub session_affinity: SessionAffinity,
    /// Affinity's time, seconds; set when the affinity is.
    pub session_affinity_timeout_seconds: Option<u32>,
    /// `internalTrafficPolicy`, `Cluster` by default as the API server sets it.
    pub internal_traffic_policy: String,
    /// `trafficDistribution`; empty when unset.
    pub traffic_distribution: String,
}

#[derive(Deserialize)]
struct Raw {
    metadata: Meta<ServiceName>,
    #[serde(default)]
    spec: Option<Spec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    r#type: Option<Type>,
    #[serde(default, rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(default)]
    ports: Option<Vec<Port>>,
    #[serde(default)]
    ip_families: Option<Vec<Family>>,
    #[serde(default)]
    session_affinity: Option<Affinity>,
    #[serde(default)]
    session_affinity_config: Option<AffinityConfig>,
    #[serde(default)]
    internal_traffic_policy: Option<TrafficPolicy>,
    #[serde(default)]
    traffic_distribution: Option<ShortText>,
}

#[derive(Deserialize)]
enum Type {
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Deserialize)]
enum Affinity {
    None,
    #[serde(rename = "ClientIP")]
    ClientIp,
}

#[derive(Deserialize)]
enum TrafficPolicy {
    Cluster,
    Local,
}

#[derive(Deserialize)]
struct AffinityConfig {
    #[serde(default, rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIp {
    #[serde(default)]
    timeout_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    name: PortName,
    #[serde(default)]
    protocol: Transport,
    port: PortNumber,
    #[serde(default)]
    app_protocol: ShortText,
}

pub(super) fn read(document: &Document<'_>) -> Result<ServiceManifest, (u32, String)> {
    let raw: Raw = document.parse()?;
    let key = raw.metadata.key();
    let spec = raw.spec.unwrap_or_default();
    let kind = match (spec.r#type, spec.cluster_ip.as_deref()) {
        (Some(Type::ExternalName), _) => ServiceKind::ExternalName,
        (None | Some(Type::ClusterIp), Some("None")) => ServiceKind::Headless,
        (None | Some(Type::ClusterIp | Type::NodePort | Type::LoadBalancer), _) => ServiceKind::ClusterIp,
    };
    let ports: Vec<ServicePort> = spec.ports.unwrap_or_default().into_iter().map(port).collect();
    at(document, check_ports(&key, kind, &ports))?;
    let ip_families: Vec<IpFamily> = spec
        .ip_families
        .unwrap_or_default()
        .into_iter()
        .map(|family| family.0)
        .collect();
    if ip_families.len() != ip_families.iter().collect::<BTreeSet<_>>().len() {
        return at(
            document,
            Err(format!(
                "Service {key} names an address family twice; each may stand once in ipFamilies"
            )),
        );
    }
    let timeout = spec
        .session_affinity_config
        .and_then(|config| config.client_ip)
        .and_then(|client| client.timeout_seconds);
    let (session_affinity, session_affinity_timeout_seconds) = match spec.session_affinity {
        None | Some(Affinity::None) => (SessionAffinity::None, None),
        Some(Affinity::ClientIp) => (
            SessionAffinity::ClientIp,
            Some(timeout.unwrap_or(DEFAULT_AFFINITY_SECONDS)),
        ),
    };
    if session_affinity_timeout_seconds.is_some_and(|seconds| seconds == 0 || seconds > MAX_AFFINITY_SECONDS)
    {
        let reason = format!(
            "Service {key}: sessionAffinityConfig.clientIP.timeoutSeconds must be 1 to {MAX_AFFINITY_SECONDS}"
        );
        return at(document, Err(reason));
    }
    let internal_traffic_policy = match spec.internal_traffic_policy {
        Some(TrafficPolicy::Local) => "Local",
        None | Some(TrafficPolicy::Cluster) => "Cluster",
    };
    Ok(ServiceManifest {
        line: document.first_line(),
        key,
        kind,
        ports,
        ip_families,
        session_affinity,
        session_affinity_timeout_seconds,
        internal_traffic_policy: internal_traffic_policy.to_owned(),
        traffic_distribution: spec.traffic_distribution.unwrap_or_default().0,
    })
}

fn port(raw: Port) -> ServicePort {
    ServicePort {
        name: raw.name.0,
        protocol: raw.protocol.0,
        port: raw.port.0,
        app_protocol: raw.app_protocol.0,
    }
}

fn check_ports(key: &ServiceKey, kind: ServiceKind, ports: &[ServicePort]) -> Result<(), String> {
    if ports.len() > MAX_PORTS {
        return Err(format!(
            "Service {key} has {} ports; at most {MAX_PORTS} are allowed",
            ports.len()
        ));
    }
    if ports.is_empty() && kind == ServiceKind::ClusterIp {
        return Err(format!(
            "Service {key} has no ports; give it spec.ports with at least one port, or clusterIP: None"
        ));
    }
    if ports.len() > 1 && ports.iter().any(|port| port.name.is_empty()) {
        return Err(format!(
            "Service {key} has several ports, and one has no name; each needs one"
        ));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for port in ports {
        if !names.insert(port.name.as_str()) {
            return Err(format!(
                "Service {key} has two ports named '{}'; names must differ",
                port.name
            ));
        }
        if !numbers.insert((port.protocol, port.port)) {
            return Err(format!(
                "Service {key} has port {}/{} twice",
                port.protocol, port.port
            ));
        }
    }
    Ok(())
}
