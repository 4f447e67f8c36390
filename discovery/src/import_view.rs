//! What all clusters offer, as this cluster sees it: the merge, then what only this cluster decides.
//!
//! The merge ([`tombolo_clusterset::merge`]) reads every export record and nothing else, so that all clusters compute the
//! same. Grants filter endpoints afterwards; leases travel in the snapshot and never touch it. This cluster's own endpoints
//! come straight from its manifests, so that a local pod counts with no broker in reach (DESIGN §4.1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tombolo_clusterset::endpoint::Readiness;
use tombolo_clusterset::merge::{Conflict, Merged, merge};
use tombolo_clusterset::snapshot::LocalExport;
use tombolo_clusterset::{
    ClusterId, ClusterView, EndpointSlice, Export, ExportRecord, Import, ImportedCluster, Lease, ServiceKey,
    ServicePort, ServiceType, SlicePort, Snapshot, Version,
};
use tombolo_wire::local::ClusterSite;

use crate::condition::{Condition, ConditionType, Status};
use crate::vip::{Holder, MAX_STAND_INS, VipBook};
use crate::watched::{WatchState, Watched};

/// Whose view it is, and what it is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// This cluster.
    pub site: &'a ClusterSite,
    /// What the broker said.
    pub watched: &'a Watched,
    /// What this cluster offers, from its manifests.
    pub exports: &'a BTreeMap<ServiceKey, Arc<Export>>,
    /// Wall clock, milliseconds since the Unix epoch.
    pub now_unix_ms: u64,
}

/// What one service came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    import: Option<Arc<Import>>,
    ready: Condition,
    conflicts: Vec<(Conflict, String)>,
    holders: BTreeSet<Holder>,
}

/// All imports and own exports, refreshed service by service.
#[derive(Debug, Clone, Default)]
pub struct ImportView {
    services: BTreeMap<ServiceKey, Seen>,
    exports: BTreeMap<ServiceKey, Arc<LocalExport>>,
}

impl ImportView {
    /// Computes the services in `dirty` anew, or all of them. Addresses are held in `vips`, and released once what held them
    /// is gone; the caller stores the book before it uses the view.
    pub fn refresh(&mut self, inputs: Inputs<'_>, vips: &mut VipBook, dirty: Option<&BTreeSet<ServiceKey>>) {
        let all: BTreeSet<ServiceKey>;
        let keys = match dirty {
            Some(dirty) => dirty,
            None => {
                let known = inputs.watched.records.keys().chain(inputs.exports.keys());
                all = known
                    .chain(self.services.keys())
                    .chain(self.exports.keys())
                    .cloned()
                    .collect();
                &all
            }
        };
        let mut released = dirty.is_none();
        for key in keys {
            self.refresh_export(inputs, key);
            let before = self.services.remove(key);
            let seen = see(inputs, vips, key, before.as_ref());
            let holds =
                |seen: &Option<Seen>| seen.as_ref().map(|seen| seen.holders.clone()).unwrap_or_default();
            released |= !holds(&before).is_subset(&holds(&seen));
            if let Some(seen) = seen {
                self.services.insert(key.clone(), seen);
            }
        }
        // An agent that has never heard a broker, nor has a cache, cannot tell what is gone.
        if released && inputs.watched.incarnation != 0 {
            let live = self
                .services
                .values()
                .flat_map(|seen| seen.holders.iter().cloned())
                .collect();
            vips.keep_only(&live, inputs.now_unix_ms);
        }
    }

    fn refresh_export(&mut self, inputs: Inputs<'_>, key: &ServiceKey) {
        let own = &inputs.site.cluster;
        let offered = inputs
            .exports
            .get(key)
            .filter(|_| inputs.watched.grants.may_export(&key.namespace, own));
        let Some(export) = offered else {
            self.exports.remove(key);
            return;
        };
        let granted = inputs.watched.grants.by_export.get(&(key.clone(), own.clone()));
        let offer = LocalExport {
            key: key.clone(),
            spec: export.spec.clone(),
            slices: export.slices.clone(),
            granted: granted.cloned(),
        };
        if self.exports.get(key).is_none_or(|old| **old != offer) {
            self.exports.insert(key.clone(), Arc::new(offer));
        }
    }

    /// What the exports of `key` disagree on.
    #[must_use]
    pub fn conflicts(&self, key: &ServiceKey) -> &[(Conflict, String)] {
        self.services.get(key).map_or(&[], |seen| &seen.conflicts)
    }

    /// `Ready` of every import.
    pub fn import_conditions(&self) -> impl Iterator<Item = (&ServiceKey, &Condition)> {
        self.services
            .iter()
            .filter(|(_, seen)| seen.import.is_some())
            .map(|(key, seen)| (key, &seen.ready))
    }

    /// The snapshot of this view. Leases count only while `watch` is fresh.
    #[must_use]
    pub fn snapshot(
        &self,
        watch: &WatchState,
        site: &ClusterSite,
        gateways: &[SocketAddr],
        local: u64,
    ) -> Snapshot {
        let watched = watch.current();
        let mut clusters = watched.members.clone();
        let own = clusters
            .entry(site.cluster.clone())
            .or_insert_with(|| ClusterView {
                id: site.cluster.clone(),
                locality: site.locality.clone(),
                network: site.network.clone(),
                gateways: gateways.to_vec(),
                lease: Lease::Unknown,
            });
        own.locality = site.locality.clone();
        own.network = site.network.clone();
        own.gateways = gateways.to_vec();
        if !watch.is_fresh() {
            clusters.values_mut().for_each(|view| view.lease = Lease::Unknown);
        }
        let imports = self
            .services
            .iter()
            .filter_map(|(key, seen)| Some((key.clone(), Arc::clone(seen.import.as_ref()?))));
        Snapshot {
            version: Version {
                incarnation: watched.incarnation,
                revision: watched.revision,
                local,
            },
            cluster: site.cluster.clone(),
            fresh: watch.is_fresh(),
            confirmed_unix_ms: watch.confirmed_unix_ms(),
            clusters,
            imports: imports.collect(),
            exports: self.exports.clone(),
            roots: watched.trust.roots.clone(),
            denied: watched.trust.denied.clone(),
            trust_domain: watched.trust.trust_domain.clone(),
        }
    }
}

/// The records of `key` as this cluster merges them: those of the broker, with its own replaced by what its manifests say.
///
/// An own export that the broker admitted merges as admitted (all clusters must agree), whatever was edited since; one that it
/// has not admitted yet takes part last, since no other cluster knows it; one that left the manifests is gone at once.
#[must_use]
pub fn records(
    watched: &Watched,
    own: &ClusterId,
    exports: &BTreeMap<ServiceKey, Arc<Export>>,
    key: &ServiceKey,
) -> Vec<Arc<ExportRecord>> {
    let admitted = watched.records.get(key);
    let mut records: Vec<Arc<ExportRecord>> = admitted
        .into_iter()
        .flatten()
        .filter(|(cluster, _)| *cluster != own)
        .map(|(_, record)| Arc::clone(record))
        .collect();
    let offered = exports
        .get(key)
        .filter(|_| watched.grants.may_export(&key.namespace, own));
    if let Some(export) = offered {
        let same_life = admitted
            .and_then(|records| records.get(own))
            .filter(|record| record.export.uid == export.uid);
        records.push(match same_life {
            Some(record) => Arc::clone(record),
            None => Arc::new(ExportRecord {
                export: export.as_ref().clone(),
                admitted: u64::MAX,
                created_ms: u64::MAX,
            }),
        });
    }
    records
}

/// What `key` comes to; None when nobody exports it.
fn see(inputs: Inputs<'_>, vips: &mut VipBook, key: &ServiceKey, before: Option<&Seen>) -> Option<Seen> {
    let own = &inputs.site.cluster;
    let records = records(inputs.watched, own, inputs.exports, key);
    let borrowed: Vec<&ExportRecord> = records.iter().map(Arc::as_ref).collect();
    let merged = merge(&borrowed)?;

    let mut holders = BTreeSet::new();
    let mut clusters = BTreeMap::new();
    let mut stand_ins_left = MAX_STAND_INS;
    let mut without_stand_in = None;
    for record in &records {
        let cluster = &record.export.cluster;
        let network = inputs.watched.members.get(cluster).map(|view| &view.network);
        let usable =
            cluster == own || (network.is_some() && inputs.watched.grants.may_import(key, cluster, own));
        let Some(serves) = merged.serves.get(cluster).filter(|_| usable) else {
            continue;
        };
        let own_slices = inputs
            .exports
            .get(key)
            .filter(|_| cluster == own)
            .map(|export| export.slices.as_slice());
        let slices = under_merged_names(
            own_slices.unwrap_or(&record.export.slices),
            serves,
            merged.spec.service_type,
        );
        let reached_directly = cluster == own || network == Some(&inputs.site.network);
        let mut stand_ins = BTreeMap::new();
        if merged.spec.service_type == ServiceType::Headless && !reached_directly {
            for endpoint in endpoints(&slices) {
                let holder = Holder::StandIn {
                    service: key.clone(),
                    cluster: cluster.clone(),
                    endpoint,
                };
                if stand_ins_left == 0 {
                    without_stand_in = Some(format!(
                        "only the first {MAX_STAND_INS} remote endpoints have a local address"
                    ));
                    break;
                }
                match vips.hold(&holder, inputs.now_unix_ms) {
                    Ok(address) => {
                        stand_ins_left -= 1;
                        stand_ins.insert(endpoint, address);
                        holders.insert(holder);
                    }
                    Err(error) => without_stand_in = Some(error.to_string()),
                }
            }
        }
        let ports = serves.iter().map(|(port, _)| port.clone()).collect();
        clusters.insert(
            cluster.clone(),
            ImportedCluster {
                ports,
                slices,
                loss_policy: merged.loss_policy,
                stand_ins,
            },
        );
    }

    let Merged {
        mut spec, conflicts, ..
    } = merged;
    let mut ips = Vec::new();
    let mut trouble = without_stand_in;
    if spec.service_type == ServiceType::ClusterSetIp && !clusters.is_empty() {
        let mut families = Vec::new();
        for family in &spec.ip_families {
            let holder = Holder::import(key, *family);
            match vips.hold(&holder, inputs.now_unix_ms) {
                Ok(address) => {
                    ips.push(address);
                    families.push(*family);
                    holders.insert(holder);
                }
                Err(error) => trouble = Some(error.to_string()),
            }
        }
        if !families.is_empty() {
            spec.ip_families = families;
        }
    }
    let usable = spec.service_type == ServiceType::Headless || !ips.is_empty();
    let ready = match trouble {
        Some(message) if !usable => Condition::new(ConditionType::Ready, Status::False, "Pending", message),
        Some(message) => Condition::new(ConditionType::Ready, Status::True, "Ready", message),
        None => Condition::new(ConditionType::Ready, Status::True, "Ready", ""),
    };
    let import = (!clusters.is_empty()).then(|| {
        let import = Import {
            key: key.clone(),
            spec,
            ips,
            clusters,
        };
        let shared = before
            .and_then(|seen| seen.import.clone())
            .filter(|old| **old == import);
        shared.unwrap_or_else(|| Arc::new(import))
    });
    Some(Seen {
        import,
        ready,
        conflicts,
        holders,
    })
}

/// `slices` with the ports that count for the import, under their merged names. A slice that serves none of them is left out,
/// unless the service is headless: its addresses are then what is asked for.
fn under_merged_names(
    slices: &[EndpointSlice],
    serves: &[(ServicePort, String)],
    kind: ServiceType,
) -> Vec<EndpointSlice> {
    let renamed = slices.iter().map(|slice| EndpointSlice {
        name: slice.name.clone(),
        family: slice.family,
        ports: serves
            .iter()
            .filter_map(|(merged, own_name)| {
                let port = slice.port(own_name, merged.protocol)?;
                Some(SlicePort {
                    name: merged.name.clone(),
                    protocol: merged.protocol,
                    port,
                })
            })
            .collect(),
        endpoints: slice.endpoints.clone(),
    });
    renamed
        .filter(|slice| kind == ServiceType::Headless || !slice.ports.is_empty())
        .collect()
}

/// The addresses that a stand-in can be needed for, in a fixed order.
fn endpoints(slices: &[EndpointSlice]) -> BTreeSet<IpAddr> {
    let all = slices.iter().flat_map(|slice| &slice.endpoints);
    all.filter(|endpoint| endpoint.readiness != Readiness::NotReady)
        .map(|endpoint| endpoint.address)
        .collect()
}

#[cfg(test)]
mod tests;
