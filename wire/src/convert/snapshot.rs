//! Members, imports, links, and the event stream that carries a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tombolo_clusterset::export::ServiceSpec;
use tombolo_clusterset::reachability::{Lease, LinkState};
use tombolo_clusterset::snapshot::{ClusterView, Import, ImportedCluster, LocalExport, Snapshot, Version};
use tombolo_clusterset::{ClusterId, Label, Locality, ServiceKey};

use super::service::{service_ports, slices};
use super::{
    Invalid, MAX_GATEWAYS, address, address_bytes, bounded, closed, closed_enum, cluster_id, required,
    service_key, text,
};
use crate::v1;

closed_enum!(v1::Lease, Lease, "lease", { Alive <=> Alive, Lost <=> Lost, Unknown <=> Unknown });
closed_enum!(v1::LinkState, LinkState, "state", { Up <=> Up, Suspect <=> Suspect, Down <=> Down, Unknown <=> Unknown });

impl TryFrom<&v1::ClusterView> for ClusterView {
    type Error = Invalid;
    fn try_from(view: &v1::ClusterView) -> Result<Self, Invalid> {
        bounded("gateways", view.gateways.len(), MAX_GATEWAYS)?;
        let gateways = view.gateways.iter().map(|gateway| {
            gateway
                .parse()
                .map_err(|_| Invalid::new("gateways", format!("'{gateway}' is no IP:PORT")))
        });
        let locality = required("locality", view.locality.as_ref())?;
        Ok(Self {
            id: cluster_id("id", &view.id)?,
            locality: Locality::try_from(locality).map_err(|invalid| invalid.within("locality"))?,
            network: Label::parse(&view.network).map_err(Invalid::name("network"))?,
            gateways: gateways.collect::<Result<_, _>>()?,
            lease: closed::<v1::Lease, _>("lease", view.lease)?,
        })
    }
}

impl From<&ClusterView> for v1::ClusterView {
    fn from(view: &ClusterView) -> Self {
        Self {
            id: view.id.to_string(),
            locality: Some((&view.locality).into()),
            network: view.network.to_string(),
            gateways: view.gateways.iter().map(ToString::to_string).collect(),
            lease: v1::Lease::from(view.lease).into(),
        }
    }
}

impl TryFrom<&v1::Import> for Import {
    type Error = Invalid;
    fn try_from(import: &v1::Import) -> Result<Self, Invalid> {
        let spec = required("spec", import.spec.as_ref())?;
        let ips = import
            .ips
            .iter()
            .map(|ip| address("ips", ip))
            .collect::<Result<_, _>>()?;
        let mut clusters = BTreeMap::new();
        for cluster in &import.clusters {
            let id = cluster_id("clusters.cluster", &cluster.cluster)?;
            let imported =
                ImportedCluster::try_from(cluster).map_err(|invalid| invalid.within("clusters"))?;
            clusters.insert(id, imported);
        }
        Ok(Self {
            key: service_key("key", import.key.as_ref())?,
            spec: ServiceSpec::try_from(spec).map_err(|invalid| invalid.within("spec"))?,
            ips,
            clusters,
        })
    }
}

impl TryFrom<&v1::ImportedCluster> for ImportedCluster {
    type Error = Invalid;
    fn try_from(imported: &v1::ImportedCluster) -> Result<Self, Invalid> {
        let stand_ins = imported.stand_ins.iter().map(|pair| {
            Ok((
                address("stand_ins.endpoint", &pair.endpoint)?,
                address("stand_ins.stand_in", &pair.stand_in)?,
            ))
        });
        Ok(Self {
            ports: service_ports(&imported.ports)?,
            slices: slices(&imported.slices)?,
            loss_policy: closed::<v1::LossPolicy, _>("loss_policy", imported.loss_policy)?,
            stand_ins: stand_ins.collect::<Result<BTreeMap<IpAddr, IpAddr>, Invalid>>()?,
        })
    }
}

impl From<&Import> for v1::Import {
    fn from(import: &Import) -> Self {
        let clusters = import.clusters.iter().map(|(id, imported)| v1::ImportedCluster {
            cluster: id.to_string(),
            ports: imported.ports.iter().map(Into::into).collect(),
            slices: imported.slices.iter().map(Into::into).collect(),
            loss_policy: v1::LossPolicy::from(imported.loss_policy).into(),
            stand_ins: imported.stand_ins.iter().map(stand_in).collect(),
        });
        Self {
            key: Some((&import.key).into()),
            spec: Some((&import.spec).into()),
            ips: import.ips.iter().map(|ip| address_bytes(*ip)).collect(),
            clusters: clusters.collect(),
        }
    }
}

fn stand_in((endpoint, stand_in): (&IpAddr, &IpAddr)) -> v1::StandIn {
    v1::StandIn {
        endpoint: address_bytes(*endpoint),
        stand_in: address_bytes(*stand_in),
    }
}

impl TryFrom<&v1::LocalExport> for LocalExport {
    type Error = Invalid;
    fn try_from(export: &v1::LocalExport) -> Result<Self, Invalid> {
        let spec = required("spec", export.spec.as_ref())?;
        let granted = export
            .granted
            .iter()
            .map(|cluster| cluster_id("granted", cluster));
        let granted: BTreeSet<ClusterId> = granted.collect::<Result<_, _>>()?;
        Ok(Self {
            key: service_key("key", export.key.as_ref())?,
            spec: ServiceSpec::try_from(spec).map_err(|invalid| invalid.within("spec"))?,
            slices: slices(&export.slices)?,
            granted: export.restricted.then_some(granted),
        })
    }
}

impl From<&LocalExport> for v1::LocalExport {
    fn from(export: &LocalExport) -> Self {
        Self {
            key: Some((&export.key).into()),
            spec: Some((&export.spec).into()),
            slices: export.slices.iter().map(Into::into).collect(),
            restricted: export.granted.is_some(),
            granted: export.granted.iter().flatten().map(ToString::to_string).collect(),
        }
    }
}

impl From<v1::Version> for Version {
    fn from(version: v1::Version) -> Self {
        Self {
            incarnation: version.incarnation,
            revision: version.revision,
            local: version.local,
        }
    }
}

impl From<Version> for v1::Version {
    fn from(version: Version) -> Self {
        Self {
            incarnation: version.incarnation,
            revision: version.revision,
            local: version.local,
        }
    }
}

/// The trust part of a snapshot as a message; `revision` is the bundle's.
#[must_use]
pub(crate) fn trust_of(snapshot: &Snapshot) -> v1::TrustBundle {
    v1::TrustBundle {
        trust_domain: snapshot.trust_domain.clone(),
        roots: snapshot.roots.iter().map(|root| root.clone().into()).collect(),
        denied: snapshot
            .denied
            .iter()
            .map(|denied| denied.to_vec().into())
            .collect(),
        revision: snapshot.version.revision,
    }
}

/// The facts about a snapshot that are no entry.
#[must_use]
pub(crate) fn meta_of(snapshot: &Snapshot) -> v1::SnapshotMeta {
    v1::SnapshotMeta {
        version: Some(snapshot.version.into()),
        cluster: snapshot.cluster.to_string(),
        fresh: snapshot.fresh,
        confirmed_unix_ms: snapshot.confirmed_unix_ms,
    }
}

/// Collects the events of a snapshot stream and yields a whole [`Snapshot`] at `InitDone` and at each `Commit`: a reader
/// never sees half of a change.
#[derive(Debug)]
pub struct SnapshotBatch {
    working: Snapshot,
    in_init: bool,
}

impl SnapshotBatch {
    /// A stream of `cluster`'s snapshot, before its first event.
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            working: Snapshot::empty(cluster),
            in_init: false,
        }
    }

    /// Takes the next event; returns the new snapshot where the event ends a batch.
    ///
    /// # Errors
    /// [`Invalid`] when the event breaks the protocol; the stream must then be opened anew.
    pub fn take(&mut self, event: &v1::SnapshotEvent) -> Result<Option<Snapshot>, Invalid> {
        use v1::snapshot_event::Event;
        match required("event", event.event.as_ref())? {
            Event::Init(_) => {
                self.working = Snapshot::empty(self.working.cluster.clone());
                self.in_init = true;
                Ok(None)
            }
            Event::Apply(entry) => self.apply(entry).map(|()| None),
            Event::Delete(key) => self.delete(key).map(|()| None),
            Event::InitDone(meta) => {
                self.in_init = false;
                self.commit(meta).map(Some)
            }
            Event::Commit(_) if self.in_init => Err(Invalid::new("commit", "came before init_done")),
            Event::Commit(meta) => self.commit(meta).map(Some),
        }
    }

    fn apply(&mut self, entry: &v1::SnapshotEntry) -> Result<(), Invalid> {
        use v1::snapshot_entry::Entry;
        match required("entry", entry.entry.as_ref())? {
            Entry::Cluster(view) => {
                let view = ClusterView::try_from(view).map_err(|invalid| invalid.within("cluster"))?;
                self.working.clusters.insert(view.id.clone(), view);
            }
            Entry::Import(import) => {
                let import = Import::try_from(import).map_err(|invalid| invalid.within("import"))?;
                self.working.imports.insert(import.key.clone(), Arc::new(import));
            }
            Entry::Export(export) => {
                let export = LocalExport::try_from(export).map_err(|invalid| invalid.within("export"))?;
                self.working.exports.insert(export.key.clone(), Arc::new(export));
            }
            Entry::Trust(trust) => {
                let denied = trust.denied.iter().map(|denied| {
                    <[u8; 32]>::try_from(denied.as_ref()).map_err(|_| {
                        Invalid::new("trust.denied", format!("{} bytes are no SHA-256", denied.len()))
                    })
                });
                self.working.denied = denied.collect::<Result<_, _>>()?;
                self.working.roots = trust.roots.iter().map(|root| root.to_vec()).collect();
                self.working.trust_domain = text("trust.trust_domain", &trust.trust_domain)?;
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: &v1::SnapshotKey) -> Result<(), Invalid> {
        use v1::snapshot_key::Key;
        match required("key", key.key.as_ref())? {
            Key::Cluster(id) => {
                self.working.clusters.remove(id.as_str());
            }
            Key::Import(key) => {
                self.working.imports.remove(&ServiceKey::try_from(key)?);
            }
            Key::Export(key) => {
                self.working.exports.remove(&ServiceKey::try_from(key)?);
            }
        }
        Ok(())
    }

    fn commit(&mut self, meta: &v1::SnapshotMeta) -> Result<Snapshot, Invalid> {
        let version = required("version", meta.version.as_ref())?;
        self.working.version = (*version).into();
        self.working.cluster = cluster_id("cluster", &meta.cluster)?;
        self.working.fresh = meta.fresh;
        self.working.confirmed_unix_ms = meta.confirmed_unix_ms;
        Ok(self.working.clone())
    }
}

/// A link as its gateway reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// The other cluster.
    pub cluster: ClusterId,
    /// State of the path.
    pub state: LinkState,
    /// Smoothed round trip time.
    pub rtt: Option<Duration>,
    /// "quic", "h2" or empty.
    pub transport: String,
    /// Peer address of the tunnel in use; empty when none.
    pub peer: String,
    /// True when the peer dialled the tunnel in use.
    pub reversed: bool,
    /// Why it is not Up; empty when it is.
    pub reason: String,
}

impl TryFrom<&v1::Link> for LinkReport {
    type Error = Invalid;
    fn try_from(link: &v1::Link) -> Result<Self, Invalid> {
        Ok(Self {
            cluster: cluster_id("cluster", &link.cluster)?,
            state: closed::<v1::LinkState, _>("state", link.state)?,
            rtt: (link.rtt_us != 0).then(|| Duration::from_micros(link.rtt_us)),
            transport: text("transport", &link.transport)?,
            peer: text("peer", &link.peer)?,
            reversed: link.reversed,
            reason: text("reason", &link.reason)?,
        })
    }
}

impl From<&LinkReport> for v1::Link {
    fn from(link: &LinkReport) -> Self {
        Self {
            cluster: link.cluster.to_string(),
            state: v1::LinkState::from(link.state).into(),
            rtt_us: link
                .rtt
                .map_or(0, |rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1)),
            transport: link.transport.clone(),
            peer: link.peer.clone(),
            reversed: link.reversed,
            reason: link.reason.clone(),
        }
    }
}
