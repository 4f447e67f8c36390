//! The manifests of a cluster, read as its agent reads them.

use std::path::Path;

use tombolo_clusterset::ClusterId;
use tombolo_discovery::manifest::{MAX_FILE_BYTES, ManifestFile, Manifests, read};

use super::Findings;

pub(super) fn check(cluster: &ClusterId, folder: &Path, findings: &mut Findings) {
    findings.looked_at(format!("manifests of {cluster}"));
    match files(folder) {
        Ok(files) => judge(folder, &read(&files), findings),
        Err(error) => findings.problem(
            folder.display().to_string(),
            format!("cannot be read ({error})"),
            "correct agent.manifests, or create the folder",
        ),
    }
}

fn judge(folder: &Path, manifests: &Manifests, findings: &mut Findings) {
    let place = |file: &str, line: u32| format!("{}:{line}", folder.join(file).display());
    for error in &manifests.errors {
        findings.problem(
            place(&error.file, error.line),
            error.reason.as_str(),
            "until then this document is left out",
        );
    }
    for (file, line, what) in &manifests.ignored {
        let advice = "it may stay; it has no effect here";
        findings.warning(
            place(file, *line),
            format!("{what} is not read by Tombolo"),
            advice,
        );
    }
    for key in manifests
        .exports
        .keys()
        .filter(|key| !manifests.services.contains_key(*key))
    {
        findings.problem(
            folder.display().to_string(),
            format!("ServiceExport {key} names no Service"),
            "add the Service, or delete the export",
        );
    }
    for key in manifests
        .slices
        .keys()
        .filter(|key| !manifests.services.contains_key(*key))
    {
        let advice = "add the Service, or correct the label kubernetes.io/service-name";
        findings.warning(
            folder.display().to_string(),
            format!("an EndpointSlice belongs to {key}, which is no Service"),
            advice,
        );
    }
}

/// The files that the agent reads: visible, with one of these extensions.
fn files(folder: &Path) -> std::io::Result<Vec<ManifestFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = ["yaml", "yml", "json"];
        let manifest = known
            .into_iter()
            .any(|known| entry.path().extension().is_some_and(|own| own == known));
        if name.starts_with('.') || !manifest {
            continue;
        }
        files.push(ManifestFile {
            content: content(&entry.path()).map_err(|error| error.to_string()),
            name,
        });
    }
    Ok(files)
}

/// One byte more than a manifest may have, so that one that is too long is seen to be.
fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_file_and_line_of_each_bad_document() {
        let folder = tempfile::tempdir().expect("a folder");
        let export = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: ghost, namespace: shop}\n";
        std::fs::write(
            folder.path().join("a.yaml"),
            format!("{export}---\nkind: Service\n"),
        )
        .expect("written");
        std::fs::write(
            folder.path().join("b.yml"),
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
        )
        .expect("written");
        std::fs::write(folder.path().join("notes.txt"), "no manifest").expect("written");
        let mut findings = Findings::default();
        check(
            &ClusterId::parse("west").expect("an id"),
            folder.path(),
            &mut findings,
        );
        let lines: Vec<String> = findings.found.iter().map(|finding| finding.line()).collect();
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].contains("a.yaml:5: has no apiVersion"), "{}", lines[0]);
        assert!(
            lines[1].contains("b.yml:1: v1 ConfigMap is not read"),
            "{}",
            lines[1]
        );
        assert!(
            lines[2].contains("ServiceExport shop/ghost names no Service"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn a_missing_folder_is_named() {
        let mut findings = Findings::default();
        check(
            &ClusterId::parse("west").expect("an id"),
            Path::new("/nowhere/manifests"),
            &mut findings,
        );
        assert!(
            findings.found[0]
                .line()
                .contains("/nowhere/manifests: cannot be read")
        );
    }
}
