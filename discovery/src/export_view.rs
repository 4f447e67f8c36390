//! What this cluster offers: Services, slices and ServiceExports become exports, or a reason why not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_clusterset::endpoint::IpFamily;
use tombolo_clusterset::{ClusterId, EndpointSlice, Export, ServiceKey, ServiceSpec, ServiceType};

use crate::condition::{Condition, ConditionType, Status};
use crate::manifest::{ExportManifest, Manifests, ServiceKind, ServiceManifest};
use crate::sightings::{Sighting, Sightings};

/// The exports of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportView {
    /// What is published. Shared with the view before where nothing changed.
    pub exports: BTreeMap<ServiceKey, Arc<Export>>,
    /// `Valid` of every ServiceExport in the manifests.
    pub valid: BTreeMap<ServiceKey, Condition>,
}

impl ExportView {
    /// The exports that `manifests` describe, with the identities of `sightings` (which has seen these manifests). `before`
    /// lends what did not change.
    #[must_use]
    pub fn of(manifests: &Manifests, cluster: &ClusterId, sightings: &Sightings, before: &Self) -> Self {
        let mut view = Self::default();
        for (key, export) in &manifests.exports {
            let condition = match (exportable(manifests, key), sightings.exports.get(key)) {
                (Err(condition), _) => condition,
                (Ok(_), None) => Condition::new(
                    ConditionType::Valid,
                    Status::Unknown,
                    "Pending",
                    "the export was not registered yet",
                ),
                (Ok(service), Some(sighting)) => {
                    let export = publication(manifests, cluster, service, export, sighting);
                    let shared = before.exports.get(key).filter(|old| ***old == export).cloned();
                    view.exports
                        .insert(key.clone(), shared.unwrap_or_else(|| Arc::new(export)));
                    Condition::new(ConditionType::Valid, Status::True, "Valid", "")
                }
            };
            view.valid.insert(key.clone(), condition);
        }
        view
    }
}

fn exportable<'a>(manifests: &'a Manifests, key: &ServiceKey) -> Result<&'a ServiceManifest, Condition> {
    let invalid = |reason: &str, message: String| {
        Err(Condition::new(
            ConditionType::Valid,
            Status::False,
            reason,
            message,
        ))
    };
    match manifests.services.get(key) {
        None => invalid(
            "NoService",
            format!("there is no Service {key} in the manifests; add it, or remove the ServiceExport"),
        ),
        Some(service) if service.kind == ServiceKind::ExternalName => invalid(
            "InvalidServiceType",
            format!("Service {key} is of type ExternalName, which has no endpoints to export"),
        ),
        Some(service) => Ok(service),
    }
}

fn publication(
    manifests: &Manifests,
    cluster: &ClusterId,
    service: &ServiceManifest,
    export: &ExportManifest,
    sighting: &Sighting,
) -> Export {
    let slices: Vec<EndpointSlice> = match manifests.slices.get(&service.key) {
        Some(slices) => slices.values().map(|slice| slice.slice.clone()).collect(),
        None => Vec::new(),
    };
    Export {
        key: service.key.clone(),
        cluster: cluster.clone(),
        uid: sighting.uid.clone(),
        claimed_created_ms: sighting.created_ms,
        spec: ServiceSpec {
            service_type: match service.kind {
                ServiceKind::Headless => ServiceType::Headless,
                ServiceKind::ClusterIp | ServiceKind::ExternalName => ServiceType::ClusterSetIp,
            },
            ports: service.ports.clone(),
            ip_families: families(service, &slices),
            session_affinity: service.session_affinity,
            session_affinity_timeout_seconds: service.session_affinity_timeout_seconds,
            internal_traffic_policy: service.internal_traffic_policy.clone(),
            traffic_distribution: service.traffic_distribution.clone(),
            labels: export.labels.clone(),
            annotations: export.annotations.clone(),
        },
        loss_policy: export.loss_policy,
        slices,
    }
}

/// The Service's families; where it leaves them out, those of its slices, IPv4 first; IPv4 where there are none, which is
/// what the API server of a single-stack cluster would say.
fn families(service: &ServiceManifest, slices: &[EndpointSlice]) -> Vec<IpFamily> {
    if !service.ip_families.is_empty() {
        return service.ip_families.clone();
    }
    let found: BTreeSet<IpFamily> = slices.iter().map(|slice| slice.family).collect();
    if found.is_empty() {
        vec![IpFamily::V4]
    } else {
        found.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tombolo_clusterset::endpoint::Protocol;
    use tombolo_clusterset::{LossPolicy, Readiness};

    use super::*;
    use crate::manifest::{ManifestFile, read};

    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {not: exported}}\n";
    const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv6\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: ['::1'], hostname: web-0}]\n";
    const EXPORT: &str = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: web, namespace: shop, annotations: {tombolo.io/on-loss: keep}}\nspec: {exportedLabels: {team: a}}\n";

    fn view(documents: &[&str]) -> ExportView {
        let text = documents.join("---\n");
        let manifests = read(&[ManifestFile {
            name: "x".into(),
            content: Ok(text.into_bytes()),
        }]);
        assert_eq!(manifests.errors, []);
        let mut sightings = Sightings::default();
        sightings.see(&manifests, 7, &mut StdRng::seed_from_u64(3));
        let cluster = ClusterId::parse("here").unwrap();
        let view = ExportView::of(&manifests, &cluster, &sightings, &ExportView::default());
        let again = ExportView::of(&manifests, &cluster, &sightings, &view);
        for (key, export) in &view.exports {
            assert!(
                Arc::ptr_eq(export, &again.exports[key]),
                "unchanged exports are shared"
            );
        }
        view
    }

    fn key() -> ServiceKey {
        ServiceKey::parse("shop/web").unwrap()
    }

    #[test]
    fn each_export_is_valid_or_says_why_not() {
        let service = |spec: &str| format!("{SERVICE}spec: {spec}\n");
        let table: &[(Option<String>, Status, &str)] = &[
            (None, Status::False, "NoService"),
            (
                Some(service("{type: ExternalName, externalName: a.b}")),
                Status::False,
                "InvalidServiceType",
            ),
            (Some(service("{ports: [{port: 80}]}")), Status::True, "Valid"),
            (Some(service("{clusterIP: None}")), Status::True, "Valid"),
        ];
        for (service, status, reason) in table {
            let documents: Vec<&str> = service.as_deref().into_iter().chain([EXPORT]).collect();
            let view = view(&documents);
            let valid = &view.valid[&key()];
            assert_eq!(
                (valid.status, valid.reason.as_str()),
                (*status, *reason),
                "{service:?}"
            );
            assert_eq!(view.exports.len(), usize::from(*status == Status::True));
        }
    }

    #[test]
    fn an_export_takes_only_what_was_chosen() {
        let service = format!("{SERVICE}spec: {{clusterIP: None, ports: [{{name: http, port: 80}}]}}\n");
        let view = view(&[&service, SLICE, EXPORT]);
        let export = &view.exports[&key()];
        assert_eq!(export.spec.service_type, ServiceType::Headless);
        assert_eq!(
            export.spec.labels,
            BTreeMap::from([("team".to_owned(), "a".to_owned())])
        );
        assert_eq!(export.spec.ip_families, [IpFamily::V6], "taken from the slices");
        assert_eq!(export.loss_policy, LossPolicy::Keep);
        assert_eq!(export.claimed_created_ms, 7);
        assert_eq!(
            export.slices[0].port("http", Protocol::Tcp),
            Some(8080),
            "the resolved targetPort"
        );
        let endpoint = &export.slices[0].endpoints[0];
        assert_eq!(endpoint.readiness, Readiness::Ready);
        assert_eq!(
            endpoint.hostname.as_ref().map(|name| name.as_str()),
            Some("web-0")
        );
    }

    #[test]
    fn a_service_without_an_export_stays_at_home() {
        let service = format!("{SERVICE}spec: {{ports: [{{port: 80}}]}}\n");
        let view = view(&[&service]);
        assert_eq!(view, ExportView::default());
    }
}
