//! Manifests: the YAML documents an operator applies, as typed objects.
//!
//! Pure: the texts of the files go in, [`Manifests`] comes out. One bad document never sinks its file, and one bad file never
//! sinks the batch: whatever is wrong becomes a [`ManifestError`] with file and line, and the rest stands.

mod documents;
mod export;
mod scalar;
mod service;
mod slice;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::Deserialize;
use tombolo_clusterset::ServiceKey;

pub use export::ExportManifest;
pub use service::{ServiceKind, ServiceManifest};
pub use slice::SliceManifest;

/// Largest manifest file, bytes: a slice of 1,000 endpoints takes some 200 KB of YAML, so this is eighty of them; more is a
/// mistake, such as a log written into the directory.
pub const MAX_FILE_BYTES: usize = 16 << 20;

/// Most manifest files in a directory: one for each of the 10,000 services of the design's largest clusterset.
pub const MAX_FILES: usize = 10_000;

/// Most documents in all files: a Service, a ServiceExport and two slices for each of 10,000 services.
pub const MAX_DOCUMENTS: usize = 40_000;

/// Most errors kept: enough to see what is wrong, few enough for one reply of `Inspect`.
pub const MAX_ERRORS: usize = 1_000;

/// A document or file that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestError {
    /// Name of the file, relative to the manifest directory.
    pub file: String,
    /// Line in the file, counted from 1; 0 when the whole file is meant.
    pub line: u32,
    /// What is wrong and what to write instead.
    pub reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.reason)
    }
}

/// Everything the manifest directory says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifests {
    /// Services, by key.
    pub services: BTreeMap<ServiceKey, ServiceManifest>,
    /// Slices, by service and then by the slice's name.
    pub slices: BTreeMap<ServiceKey, BTreeMap<String, SliceManifest>>,
    /// Exports, by key.
    pub exports: BTreeMap<ServiceKey, ExportManifest>,
    /// What was left out.
    pub errors: Vec<ManifestError>,
    /// Documents of kinds that Tombolo does not read: (file, line, `apiVersion kind`). No error.
    pub ignored: Vec<(String, u32, String)>,
}

/// One file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Name relative to the manifest directory.
    pub name: String,
    /// Its bytes, or why it could not be read.
    pub content: Result<Vec<u8>, String>,
}

/// Reads all `files`. Of two documents that describe the same object the first stands, in the order of the file names, and
/// the other is an error.
#[must_use]
pub fn read(files: &[ManifestFile]) -> Manifests {
    let mut order: Vec<&ManifestFile> = files.iter().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    let mut reading = Reading::default();
    for (at, file) in order.into_iter().enumerate() {
        if at >= MAX_FILES {
            reading.error(&file.name, 0, format!("the directory holds more than {MAX_FILES} manifest files; this one and those after it are left out"));
            break;
        }
        reading.file(file);
    }
    reading.out
}

/// The part of a document that says what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Default)]
struct Reading {
    out: Manifests,
    documents: usize,
    /// Where each object was first described, for the message about the second.
    first: BTreeMap<(&'static str, ServiceKey, String), (String, u32)>,
}

impl Reading {
    fn error(&mut self, file: &str, line: u32, reason: String) {
        if self.out.errors.len() < MAX_ERRORS {
            self.out.errors.push(ManifestError {
                file: file.to_owned(),
                line,
                reason,
            });
        }
    }

    fn file(&mut self, file: &ManifestFile) {
        let text = match &file.content {
            Err(reason) => return self.error(&file.name, 0, format!("cannot be read: {reason}")),
            Ok(bytes) if bytes.len() > MAX_FILE_BYTES => {
                let reason = format!(
                    "is {} bytes long; a manifest file may have {MAX_FILE_BYTES}: split it",
                    bytes.len()
                );
                return self.error(&file.name, 0, reason);
            }
            Ok(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => {
                    let line = 1 + bytes
                        .iter()
                        .take(error.valid_up_to())
                        .filter(|byte| **byte == b'\n')
                        .count();
                    return self.error(
                        &file.name,
                        documents::line_number(line),
                        "is not UTF-8; save it as UTF-8".to_owned(),
                    );
                }
            },
        };
        for document in documents::split(text) {
            if self.documents >= MAX_DOCUMENTS {
                let reason = format!(
                    "the manifests hold more than {MAX_DOCUMENTS} documents; this one and those after it are left out"
                );
                return self.error(&file.name, document.line, reason);
            }
            self.documents += 1;
            if let Err((line, reason)) = self.document(&file.name, &document) {
                self.error(&file.name, line, reason);
            }
        }
    }

    fn document(&mut self, file: &str, document: &documents::Document<'_>) -> Result<(), (u32, String)> {
        let head: Head = document.parse()?;
        match (head.api_version.as_str(), head.kind.as_str()) {
            ("v1", "Service") => {
                let service = service::read(document)?;
                let key = service.key.clone();
                self.claim("Service", &key, String::new(), file, service.line)?;
                self.out.services.insert(key, service);
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                let slice = slice::read(document)?;
                let key = slice.service.clone();
                self.claim("EndpointSlice", &key, slice.slice.name.clone(), file, slice.line)?;
                self.out
                    .slices
                    .entry(key)
                    .or_default()
                    .insert(slice.slice.name.clone(), slice);
            }
            ("multicluster.x-k8s.io/v1alpha1" | "multicluster.x-k8s.io/v1beta1", "ServiceExport") => {
                let export = export::read(document)?;
                let key = export.key.clone();
                self.claim("ServiceExport", &key, String::new(), file, export.line)?;
                self.out.exports.insert(key, export);
            }
            ("", _) | (_, "") => {
                let reason =
                    "has no apiVersion or no kind; write, for example, 'apiVersion: v1' and 'kind: Service'";
                return Err((document.first_line(), reason.to_owned()));
            }
            (version, kind @ ("Service" | "EndpointSlice" | "ServiceExport")) => {
                let known = "v1 Service, discovery.k8s.io/v1 EndpointSlice and multicluster.x-k8s.io/v1beta1 ServiceExport";
                return Err((
                    document.first_line(),
                    format!("apiVersion '{version}' of {kind} is not known; Tombolo reads {known}"),
                ));
            }
            (version, kind) => {
                self.out.ignored.push((
                    file.to_owned(),
                    document.first_line(),
                    format!("{version} {kind}"),
                ));
            }
        }
        Ok(())
    }

    fn claim(
        &mut self,
        kind: &'static str,
        key: &ServiceKey,
        name: String,
        file: &str,
        line: u32,
    ) -> Result<(), (u32, String)> {
        let what = if name.is_empty() {
            format!("{kind} {key}")
        } else {
            format!("{kind} {}/{name}", key.namespace)
        };
        match self.first.entry((kind, key.clone(), name)) {
            Entry::Vacant(free) => {
                free.insert((file.to_owned(), line));
                Ok(())
            }
            Entry::Occupied(taken) => {
                let (other, at) = taken.get();
                Err((
                    line,
                    format!("{what} stands already at {other}:{at}; remove one of the two"),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests;
