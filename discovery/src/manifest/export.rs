//! `multicluster.x-k8s.io` ServiceExport, `v1alpha1` and `v1beta1`.

use std::collections::BTreeMap;

use serde::Deserialize;
use tombolo_clusterset::{LossPolicy, ServiceKey, ServiceName};

use super::documents::Document;
use super::scalar::{Meta, at};

/// What the loss of this cluster means to the service: `keep`, `degrade` or `withdraw`.
const ON_LOSS_ANNOTATION: &str = "tombolo.io/on-loss";

/// Most bytes of exported labels and annotations together: the API's limit for the annotations of one object.
const MAX_EXPORTED_BYTES: usize = 256 << 10;

/// Longest UID, bytes: a UUID has 36.
const UID_MAX: usize = 128;

/// A ServiceExport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportManifest {
    /// Line at which the document begins.
    pub line: u32,
    /// Which service it exports.
    pub key: ServiceKey,
    /// `metadata.uid`, when the manifest gives one.
    pub uid: Option<String>,
    /// `metadata.creationTimestamp`, milliseconds since the Unix epoch, when the manifest gives one.
    pub created_ms: Option<u64>,
    /// `spec.exportedLabels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.exportedAnnotations`.
    pub annotations: BTreeMap<String, String>,
    /// [`ON_LOSS_ANNOTATION`].
    pub loss_policy: LossPolicy,
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
    exported_labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    exported_annotations: Option<BTreeMap<String, String>>,
}

pub(super) fn read(document: &Document<'_>) -> Result<ExportManifest, (u32, String)> {
    let raw: Raw = document.parse()?;
    let key = raw.metadata.key();
    let spec = raw.spec.unwrap_or_default();
    let labels = spec.exported_labels.unwrap_or_default();
    let annotations = spec.exported_annotations.unwrap_or_default();
    let bytes: usize = labels
        .iter()
        .chain(&annotations)
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > MAX_EXPORTED_BYTES {
        let reason = format!(
            "ServiceExport {key} exports {bytes} bytes of labels and annotations; at most {MAX_EXPORTED_BYTES} are allowed"
        );
        return at(document, Err(reason));
    }
    let uid = raw.metadata.uid.filter(|uid| !uid.is_empty());
    if uid
        .as_ref()
        .is_some_and(|uid| uid.len() > UID_MAX || uid.chars().any(char::is_control))
    {
        return at(
            document,
            Err(format!(
                "ServiceExport {key}: metadata.uid has at most {UID_MAX} bytes and no control characters"
            )),
        );
    }
    let on_loss = raw
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(ON_LOSS_ANNOTATION));
    let loss_policy = match on_loss.map(String::as_str) {
        None => LossPolicy::default(),
        Some("keep") => LossPolicy::Keep,
        Some("degrade") => LossPolicy::Degrade,
        Some("withdraw") => LossPolicy::Withdraw,
        Some(other) => {
            let reason = format!(
                "ServiceExport {key}: {ON_LOSS_ANNOTATION} is '{other}'; use keep, degrade or withdraw"
            );
            return at(document, Err(reason));
        }
    };
    Ok(ExportManifest {
        line: document.first_line(),
        key,
        uid,
        created_ms: raw.metadata.creation_timestamp.map(|time| time.0),
        labels,
        annotations,
        loss_policy,
    })
}
