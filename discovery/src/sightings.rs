//! UID and creation time of exports whose manifests give none: assigned at first sight, kept as long as the export stands.
//!
//! Pure: the caller persists [`Sightings`] before it publishes what they name. In Kubernetes the API server does this.

use std::collections::BTreeMap;

use rand::Rng;
use serde::{Deserialize, Serialize};
use tombolo_clusterset::ServiceKey;

use crate::manifest::Manifests;

/// What was assigned to one export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sighting {
    /// Names this life of the export.
    pub uid: String,
    /// When it was first seen, or what its manifest claimed then; milliseconds since the Unix epoch.
    pub created_ms: u64,
}

/// Everything that was assigned, as it stands in `exports.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sightings {
    /// Version of this format.
    pub version: u32,
    /// By service.
    pub exports: BTreeMap<ServiceKey, Sighting>,
}

/// The format that this build writes and reads.
pub const SIGHTINGS_VERSION: u32 = 1;

impl Sightings {
    /// Brings the book up to `manifests`: a new export gets a UID and a time, one that is gone loses them, since an export
    /// that comes back is a new one (KEP-1645 takes the ServiceExport's `creationTimestamp`). True when anything changed.
    pub fn see(&mut self, manifests: &Manifests, now_ms: u64, rng: &mut impl Rng) -> bool {
        self.version = SIGHTINGS_VERSION;
        let before = self.exports.len();
        self.exports.retain(|key, _| manifests.exports.contains_key(key));
        let mut changed = self.exports.len() != before;
        for (key, export) in &manifests.exports {
            let seen = self.exports.get(key);
            let uid = export.uid.clone().or_else(|| seen.map(|seen| seen.uid.clone()));
            let same_life = seen.is_some_and(|seen| uid.as_ref() == Some(&seen.uid));
            let first_seen = seen.filter(|_| same_life).map(|seen| seen.created_ms);
            let sighting = Sighting {
                uid: uid.unwrap_or_else(|| new_uid(rng)),
                created_ms: export.created_ms.or(first_seen).unwrap_or(now_ms),
            };
            if seen != Some(&sighting) {
                self.exports.insert(key.clone(), sighting);
                changed = true;
            }
        }
        changed
    }
}

/// A random UUID (RFC 9562 §5.4, version 4).
fn new_uid(rng: &mut impl Rng) -> String {
    let bits: u128 = rng.random();
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::manifest::{ManifestFile, read};

    fn manifests(meta: &str) -> Manifests {
        let text = format!(
            "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: web, namespace: shop{meta}}}\n"
        );
        read(&[ManifestFile {
            name: "x".into(),
            content: Ok(text.into_bytes()),
        }])
    }

    #[test]
    fn an_export_keeps_its_identity_for_one_life() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut book = Sightings::default();
        let key = ServiceKey::parse("shop/web").unwrap();
        assert!(book.see(&manifests(""), 1_000, &mut rng));
        let first = book.exports[&key].clone();
        assert_eq!(first.created_ms, 1_000);
        assert_eq!((first.uid.len(), &first.uid[14..15]), (36, "4"));
        assert!(
            !book.see(&manifests(""), 2_000, &mut rng),
            "seen again: nothing changes"
        );
        assert!(book.see(&Manifests::default(), 3_000, &mut rng));
        assert!(book.see(&manifests(""), 4_000, &mut rng));
        assert_eq!(book.exports[&key].created_ms, 4_000, "a second life");
        assert_ne!(book.exports[&key].uid, first.uid);
    }

    #[test]
    fn what_the_manifest_says_goes_first() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut book = Sightings::default();
        let key = ServiceKey::parse("shop/web").unwrap();
        let given = ", uid: u-1, creationTimestamp: 1970-01-01T00:00:05Z";
        book.see(&manifests(given), 9_000, &mut rng);
        assert_eq!(
            book.exports[&key],
            Sighting {
                uid: "u-1".into(),
                created_ms: 5_000
            }
        );
        book.see(&manifests(", uid: u-2"), 9_000, &mut rng);
        assert_eq!(
            book.exports[&key],
            Sighting {
                uid: "u-2".into(),
                created_ms: 9_000
            },
            "another UID is another life"
        );
    }
}
