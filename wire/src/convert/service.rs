//! Services, endpoints, exports.

use std::collections::BTreeMap;

use tombolo_clusterset::endpoint::{Endpoint, EndpointSlice, IpFamily, Protocol, Readiness, SlicePort};
use tombolo_clusterset::export::{
    Export, ExportRecord, ServicePort, ServiceSpec, ServiceType, SessionAffinity,
};
use tombolo_clusterset::policy::LossPolicy;
use tombolo_clusterset::{Label, Locality};

use super::{
    Invalid, MAX_ENDPOINTS, MAX_LABELS, MAX_PORTS, MAX_SLICES, address, address_bytes, bounded, closed,
    closed_enum, cluster_id, port, required, service_key, text,
};
use crate::v1;

closed_enum!(v1::Protocol, Protocol, "protocol", { Tcp <=> Tcp, Udp <=> Udp, Sctp <=> Sctp });
closed_enum!(v1::IpFamily, IpFamily, "family", { V4 <=> V4, V6 <=> V6 });
closed_enum!(v1::Readiness, Readiness, "readiness", { Ready <=> Ready, Terminating <=> Terminating, NotReady <=> NotReady });
closed_enum!(v1::ServiceType, ServiceType, "service_type", { ClusterSetIp <=> ClusterSetIp, Headless <=> Headless });
closed_enum!(v1::SessionAffinity, SessionAffinity, "session_affinity", { None <=> None, ClientIp <=> ClientIp });
closed_enum!(v1::LossPolicy, LossPolicy, "loss_policy", { Keep <=> Keep, Degrade <=> Degrade, Withdraw <=> Withdraw });

impl TryFrom<&v1::Locality> for Locality {
    type Error = Invalid;
    fn try_from(locality: &v1::Locality) -> Result<Self, Invalid> {
        Ok(Self {
            region: text("region", &locality.region)?,
            zone: text("zone", &locality.zone)?,
            node: text("node", &locality.node)?,
        })
    }
}

impl From<&Locality> for v1::Locality {
    fn from(locality: &Locality) -> Self {
        Self {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            node: locality.node.clone(),
        }
    }
}

impl TryFrom<&v1::Endpoint> for Endpoint {
    type Error = Invalid;
    fn try_from(endpoint: &v1::Endpoint) -> Result<Self, Invalid> {
        let hostname = match endpoint.hostname.as_str() {
            "" => None,
            hostname => Some(Label::parse(hostname).map_err(Invalid::name("hostname"))?),
        };
        Ok(Self {
            address: address("address", &endpoint.address)?,
            readiness: closed::<v1::Readiness, _>("readiness", endpoint.readiness)?,
            hostname,
            zone: text("zone", &endpoint.zone)?,
            node: text("node", &endpoint.node)?,
        })
    }
}

impl From<&Endpoint> for v1::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            address: address_bytes(endpoint.address),
            readiness: v1::Readiness::from(endpoint.readiness).into(),
            hostname: endpoint
                .hostname
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            zone: endpoint.zone.clone(),
            node: endpoint.node.clone(),
        }
    }
}

impl TryFrom<&v1::EndpointSlice> for EndpointSlice {
    type Error = Invalid;
    fn try_from(slice: &v1::EndpointSlice) -> Result<Self, Invalid> {
        bounded("ports", slice.ports.len(), MAX_PORTS)?;
        bounded("endpoints", slice.endpoints.len(), MAX_ENDPOINTS)?;
        let family = closed::<v1::IpFamily, _>("family", slice.family)?;
        let ports = slice.ports.iter().map(slice_port).collect::<Result<_, _>>()?;
        let mut endpoints = Vec::with_capacity(slice.endpoints.len());
        for (at, endpoint) in slice.endpoints.iter().enumerate() {
            let endpoint = Endpoint::try_from(endpoint)
                .map_err(|invalid| invalid.within(&format!("endpoints[{at}]")))?;
            if IpFamily::of(endpoint.address) != family {
                let reason = format!("{} is not of the slice's family", endpoint.address);
                return Err(Invalid::new(&format!("endpoints[{at}].address"), reason));
            }
            endpoints.push(endpoint);
        }
        Ok(Self {
            name: text("name", &slice.name)?,
            family,
            ports,
            endpoints,
        })
    }
}

fn slice_port(slice_port: &v1::SlicePort) -> Result<SlicePort, Invalid> {
    Ok(SlicePort {
        name: text("ports.name", &slice_port.name)?,
        protocol: closed::<v1::Protocol, _>("ports.protocol", slice_port.protocol)?,
        port: port("ports.port", slice_port.port)?,
    })
}

impl From<&EndpointSlice> for v1::EndpointSlice {
    fn from(slice: &EndpointSlice) -> Self {
        let ports = slice.ports.iter().map(|port| v1::SlicePort {
            name: port.name.clone(),
            protocol: v1::Protocol::from(port.protocol).into(),
            port: port.port.into(),
        });
        Self {
            name: slice.name.clone(),
            family: v1::IpFamily::from(slice.family).into(),
            ports: ports.collect(),
            endpoints: slice.endpoints.iter().map(Into::into).collect(),
        }
    }
}

/// Slices of one export, each checked.
pub(super) fn slices(slices: &[v1::EndpointSlice]) -> Result<Vec<EndpointSlice>, Invalid> {
    bounded("slices", slices.len(), MAX_SLICES)?;
    let checked = slices.iter().enumerate().map(|(at, slice)| {
        EndpointSlice::try_from(slice).map_err(|invalid| invalid.within(&format!("slices[{at}]")))
    });
    checked.collect()
}

impl TryFrom<&v1::ServicePort> for ServicePort {
    type Error = Invalid;
    fn try_from(service_port: &v1::ServicePort) -> Result<Self, Invalid> {
        Ok(Self {
            name: text("name", &service_port.name)?,
            protocol: closed::<v1::Protocol, _>("protocol", service_port.protocol)?,
            port: port("port", service_port.port)?,
            app_protocol: text("app_protocol", &service_port.app_protocol)?,
        })
    }
}

impl From<&ServicePort> for v1::ServicePort {
    fn from(port: &ServicePort) -> Self {
        Self {
            name: port.name.clone(),
            protocol: v1::Protocol::from(port.protocol).into(),
            port: port.port.into(),
            app_protocol: port.app_protocol.clone(),
        }
    }
}

/// Ports of one service, each checked.
pub(super) fn service_ports(ports: &[v1::ServicePort]) -> Result<Vec<ServicePort>, Invalid> {
    bounded("ports", ports.len(), MAX_PORTS)?;
    ports
        .iter()
        .map(|port| ServicePort::try_from(port).map_err(|invalid| invalid.within("ports")))
        .collect()
}

impl TryFrom<&v1::ServiceSpec> for ServiceSpec {
    type Error = Invalid;
    fn try_from(spec: &v1::ServiceSpec) -> Result<Self, Invalid> {
        let ports = service_ports(&spec.ports)?;
        for (at, one) in ports.iter().enumerate() {
            let twin = |other: &ServicePort| {
                other.name == one.name || (other.protocol == one.protocol && other.port == one.port)
            };
            if ports[..at].iter().any(twin) {
                let reason = format!(
                    "port '{}' ({}/{}) appears twice",
                    one.name, one.port, one.protocol
                );
                return Err(Invalid::new("ports", reason));
            }
        }
        bounded("ip_families", spec.ip_families.len(), 2)?;
        let families = spec
            .ip_families
            .iter()
            .map(|family| closed::<v1::IpFamily, _>("ip_families", *family));
        Ok(Self {
            service_type: closed::<v1::ServiceType, _>("service_type", spec.service_type)?,
            ports,
            ip_families: families.collect::<Result<_, _>>()?,
            session_affinity: closed::<v1::SessionAffinity, _>("session_affinity", spec.session_affinity)?,
            session_affinity_timeout_seconds: spec.session_affinity_timeout_seconds,
            internal_traffic_policy: text("internal_traffic_policy", &spec.internal_traffic_policy)?,
            traffic_distribution: text("traffic_distribution", &spec.traffic_distribution)?,
            labels: texts("labels", &spec.labels)?,
            annotations: texts("annotations", &spec.annotations)?,
        })
    }
}

fn texts(
    field: &str,
    map: &std::collections::HashMap<String, String>,
) -> Result<BTreeMap<String, String>, Invalid> {
    bounded(field, map.len(), MAX_LABELS)?;
    map.iter()
        .map(|(key, value)| Ok((text(field, key)?, text(field, value)?)))
        .collect()
}

impl From<&ServiceSpec> for v1::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        Self {
            service_type: v1::ServiceType::from(spec.service_type).into(),
            ports: spec.ports.iter().map(Into::into).collect(),
            ip_families: spec
                .ip_families
                .iter()
                .map(|family| v1::IpFamily::from(*family).into())
                .collect(),
            session_affinity: v1::SessionAffinity::from(spec.session_affinity).into(),
            session_affinity_timeout_seconds: spec.session_affinity_timeout_seconds,
            internal_traffic_policy: spec.internal_traffic_policy.clone(),
            traffic_distribution: spec.traffic_distribution.clone(),
            labels: spec.labels.clone().into_iter().collect(),
            annotations: spec.annotations.clone().into_iter().collect(),
        }
    }
}

impl TryFrom<&v1::Export> for Export {
    type Error = Invalid;
    fn try_from(export: &v1::Export) -> Result<Self, Invalid> {
        let spec = required("spec", export.spec.as_ref())?;
        Ok(Self {
            key: service_key("key", export.key.as_ref())?,
            cluster: cluster_id("cluster", &export.cluster)?,
            uid: text("uid", &export.uid)?,
            claimed_created_ms: export.claimed_created_ms,
            spec: ServiceSpec::try_from(spec).map_err(|invalid| invalid.within("spec"))?,
            loss_policy: closed::<v1::LossPolicy, _>("loss_policy", export.loss_policy)?,
            slices: slices(&export.slices)?,
        })
    }
}

impl From<&Export> for v1::Export {
    fn from(export: &Export) -> Self {
        Self {
            key: Some((&export.key).into()),
            cluster: export.cluster.to_string(),
            uid: export.uid.clone(),
            claimed_created_ms: export.claimed_created_ms,
            spec: Some((&export.spec).into()),
            loss_policy: v1::LossPolicy::from(export.loss_policy).into(),
            slices: export.slices.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::ExportRecord> for ExportRecord {
    type Error = Invalid;
    fn try_from(record: &v1::ExportRecord) -> Result<Self, Invalid> {
        let export = required("export", record.export.as_ref())?;
        Ok(Self {
            export: Export::try_from(export).map_err(|invalid| invalid.within("export"))?,
            admitted: record.admitted,
            created_ms: record.created_ms,
        })
    }
}

impl From<&ExportRecord> for v1::ExportRecord {
    fn from(record: &ExportRecord) -> Self {
        Self {
            export: Some((&record.export).into()),
            admitted: record.admitted,
            created_ms: record.created_ms,
        }
    }
}
