//! `tombolo broker remove|backup|restore`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tombolo_daemon::Seams;
use tombolo_wire::v1;

use crate::args::Target;
use crate::operator::{Operators, refusal};
use crate::output::{print_line, when};
use crate::up::Layout;
use crate::up::control::{Request, ask};

/// Longer than any `up` runs: ten years.
const FOR_GOOD_MS: u64 = 10 * 365 * 24 * 3600 * 1000;

/// Takes a broker out of the group.
pub(crate) async fn remove(target: &Target, id: u64) -> Result<()> {
    let mut client = Operators::find(target)?.connect().await?;
    client
        .remove_broker(v1::RemoveBrokerRequest { id })
        .await
        .map_err(|status| refusal(&status))?;
    if retire(target, id).await? {
        return print_line(&format!(
            "broker {id} is removed and its process stopped. Its id is never used again"
        ));
    }
    print_line(&format!(
        "broker {id} is removed; stop its process. Its id is never used again"
    ))
}

/// Stops a broker of `up`'s for good. False when `up` does not run it.
async fn retire(target: &Target, id: u64) -> Result<bool> {
    let layout = Layout::new(&target.data_dir);
    if target.broker.is_some() || !layout.broker(id).is_dir() {
        return Ok(false);
    }
    let marker = layout.removed(id);
    std::fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
    let kill = Request::Kill {
        cluster: format!("broker-{id}"),
        role: None,
        hold_ms: FOR_GOOD_MS,
    };
    // When `up` does not run there is nothing to stop: the marker keeps it from starting.
    Ok(ask(&layout.root, &kill).await.is_ok())
}

/// Writes a consistent back-up: beside the file first, then linked into place, so that there is a whole one or none.
pub(crate) async fn backup(target: &Target, out: &Path) -> Result<()> {
    let (mut file, temporary) = begin(out)?;
    let written = async {
        let mut client = Operators::find(target)?.connect().await?;
        let stream = client
            .backup(v1::BackupRequest {})
            .await
            .map_err(|status| refusal(&status))?;
        let mut stream = stream.into_inner();
        let mut len: u64 = 0;
        while let Some(chunk) = stream.message().await.map_err(|status| refusal(&status))? {
            file.write_all(&chunk.data)
                .with_context(|| format!("cannot write {}", temporary.display()))?;
            len += chunk.data.len() as u64;
        }
        anyhow::ensure!(len > 0, "the broker sent an empty back-up; try again");
        finish(&file, &temporary, out)?;
        Ok(len)
    };
    let written = written.await;
    // After a success this is the second name of the same file.
    let removed = std::fs::remove_file(&temporary);
    let len = written?;
    removed.with_context(|| format!("cannot remove {}", temporary.display()))?;
    print_line(&format!(
        "{len} bytes in {}; keep it as safe as the brokers' key-encryption key (`kek`), without which it restores nothing",
        out.display()
    ))
}

fn begin(out: &Path) -> Result<(File, std::path::PathBuf)> {
    if out.symlink_metadata().is_ok() {
        bail!(
            "{} exists already; name another file, a back-up is never overwritten",
            out.display()
        );
    }
    let Some(name) = out.file_name() else {
        bail!("{} names no file", out.display())
    };
    let temporary = out.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary);
    let file = file.with_context(|| format!("cannot write beside {}; check its folder", out.display()))?;
    Ok((file, temporary))
}

/// A link fails where a rename would overwrite.
fn finish(file: &File, temporary: &Path, out: &Path) -> Result<()> {
    file.sync_all()
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    std::fs::hard_link(temporary, out).with_context(|| format!("cannot write {}", out.display()))?;
    let folder = out
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("cannot write the folder {}", folder.display()))
}

/// Begins a new incarnation from a back-up.
pub(crate) async fn restore(from: &Path, config: &Path) -> Result<()> {
    let broker = crate::roles::broker_config(config)?;
    let summary = tombolo_broker::restore(from, &broker, &Seams::host()).await?;
    let id = broker.id;
    print_line(&format!(
        "restored the state of {}; incarnation {} begins with `tombolo broker --config {}`",
        when(summary.taken_unix_ms),
        summary.incarnation,
        config.display()
    ))?;
    print_line(&format!("operator identity: {}", summary.operator.display()))?;
    print_line(&format!(
        "{} join tokens are void; create new ones",
        summary.tokens_voided
    ))?;
    if !summary.brokers_dropped.is_empty() {
        let dropped: Vec<String> = summary.brokers_dropped.iter().map(ToString::to_string).collect();
        print_line(&format!(
            "broker {id} is alone: brokers {} are not in the new group; add others under new ids with `tombolo broker add`",
            dropped.join(", ")
        ))?;
    }
    if !summary.members.is_empty() {
        print_line("members again; evict those that were evicted after the back-up was taken:")?;
        for member in &summary.members {
            print_line(&format!("  tombolo evict {member}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_up_is_whole_or_absent_and_never_overwrites() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("clusterset.backup");
        let (mut file, temporary) = begin(&out).expect("begun");
        file.write_all(b"state").expect("written");
        assert!(!out.exists(), "nothing is seen before the end");
        finish(&file, &temporary, &out).expect("finished");
        assert_eq!(std::fs::read(&out).expect("read"), b"state");
        let error = begin(&out).expect_err("refused").to_string();
        assert!(error.contains("exists already"), "{error}");
        // Someone else wrote it meanwhile.
        let other = folder.path().join("other");
        let (file, temporary) = begin(&other).expect("begun");
        std::fs::write(&other, b"theirs").expect("written");
        assert!(finish(&file, &temporary, &other).is_err());
        assert_eq!(std::fs::read(&other).expect("read"), b"theirs");
    }
}
