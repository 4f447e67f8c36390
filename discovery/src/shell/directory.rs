//! The manifest directory: read at the start, at each change, and every [`RESCAN`] in case a change was not told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tombolo_daemon::backoff::Backoff;
use tombolo_daemon::seam::Seams;

use crate::manifest::{MAX_FILE_BYTES, MAX_FILES, ManifestFile, Manifests, read};

/// Scan without being told: the watcher can lose events (its queue overflows, network file systems tell nothing).
pub const RESCAN: Duration = Duration::from_secs(30);

/// How long the directory must be quiet before it is read: an editor or `kubectl`-like tool writes its files within this.
const QUIET: Duration = Duration::from_millis(50);

/// Read at the latest after this, however busy the directory is: well inside the second that an export may take.
const QUIET_MAX: Duration = Duration::from_millis(250);

/// How often a file that changes while it is read is read again before it is left to the next scan.
const READ_TRIES: u32 = 3;

/// Time between these tries.
const READ_PAUSE: Duration = Duration::from_millis(20);

/// Delays between tries to read a directory that cannot be read.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the directory's task tells.
#[derive(Debug)]
pub enum Found {
    /// The manifests, when they differ from those before.
    Manifests(Manifests),
    /// The directory cannot be read; what was read before stands.
    Unreadable {
        /// Why, with the path.
        reason: String,
    },
}

/// Follows `directory` until the receiver is gone.
pub async fn follow(directory: PathBuf, found: mpsc::Sender<Found>, seams: Seams) {
    let touched = Arc::new(Notify::new());
    let mut rng = seams.entropy.rng();
    let mut backoff = Backoff::full(RETRY_BASE, RETRY_MAX);
    let mut watcher = None;
    let mut known = Known::default();
    loop {
        if watcher.is_none() {
            // Watch before the scan, so that a change in between is told.
            watcher = match watch(&directory, Arc::clone(&touched)) {
                Ok(watcher) => Some(watcher),
                Err(error) => {
                    tracing::warn!(%error, directory = %directory.display(), "cannot watch the manifest directory; reading it every {} s", RESCAN.as_secs());
                    None
                }
            };
        }
        let (scanned, next) = scan(directory.clone(), known).await;
        known = next;
        let (message, wait) = match scanned {
            Ok(None) => (None, RESCAN),
            Ok(Some(manifests)) => {
                backoff.reset();
                (Some(Found::Manifests(manifests)), RESCAN)
            }
            Err(reason) => {
                // A directory that was replaced needs a new watch.
                watcher = None;
                (Some(Found::Unreadable { reason }), backoff.next(&mut rng))
            }
        };
        if let Some(message) = message
            && found.send(message).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = found.closed() => return,
            _ = timeout(wait, touched.notified()) => settle(&touched, seams.clock.now()).await,
        }
    }
}

/// Waits until nothing was touched for [`QUIET`], at most [`QUIET_MAX`].
async fn settle(touched: &Notify, now: Instant) {
    let latest = now + QUIET_MAX;
    let quiet = async { while timeout(QUIET, touched.notified()).await.is_ok() {} };
    // Either way it is time to read.
    let _ = timeout_at(latest, quiet).await;
}

fn watch(directory: &Path, touched: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = match &event {
            Ok(event) => !event.kind.is_access(),
            Err(_) => true,
        };
        if concerns {
            touched.notify_one();
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    modified: Option<SystemTime>,
    changed_ns: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            len: metadata.len(),
            modified: metadata.modified().ok(),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The files as they were read last; None before the first time.
#[derive(Debug, Default)]
struct Known(Option<BTreeMap<String, (Option<Stamp>, ManifestFile)>>);

async fn scan(directory: PathBuf, known: Known) -> (Result<Option<Manifests>, String>, Known) {
    let path = directory.display().to_string();
    match tokio::task::spawn_blocking(move || scan_now(&directory, known)).await {
        Ok(scanned) => scanned,
        Err(error) => (Err(format!("reading {path} failed: {error}")), Known::default()),
    }
}

fn scan_now(directory: &Path, known: Known) -> (Result<Option<Manifests>, String>, Known) {
    let names = match names(directory) {
        Ok(names) => names,
        Err(error) => {
            let reason = format!(
                "cannot read the manifest directory {}: {error}; create it, or correct agent.manifests",
                directory.display()
            );
            return (Err(reason), known);
        }
    };
    let first = known.0.is_none();
    let mut before = known.0.unwrap_or_default();
    let mut changed = false;
    let mut now = BTreeMap::new();
    for name in names {
        let path = directory.join(&name);
        let stamp = fs::metadata(&path).ok().map(|metadata| Stamp::of(&metadata));
        let same = before
            .remove(&name)
            .filter(|(old, _)| stamp.is_some() && *old == stamp);
        let entry = same.unwrap_or_else(|| {
            changed = true;
            let (stamp, content) = read_settled(&path);
            (
                stamp,
                ManifestFile {
                    name: name.clone(),
                    content,
                },
            )
        });
        now.insert(name, entry);
    }
    changed |= first || !before.is_empty();
    let manifests = changed.then(|| {
        let files: Vec<ManifestFile> = now.values().map(|(_, file)| file.clone()).collect();
        read(&files)
    });
    (Ok(manifests), Known(Some(now)))
}

/// Names of the manifest files, sorted. Hidden files are editors' and `write_atomic`'s scratch.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let manifest = [".yaml", ".yml", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if manifest && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    // One more than is read, so that the reader sees that there were too many.
    names.truncate(MAX_FILES + 1);
    Ok(names)
}

/// Reads a file whose stamp is the same before and after. One that keeps changing is read as it is; its stamp is then left
/// out, so that the next scan reads it again.
fn read_settled(path: &Path) -> (Option<Stamp>, Result<Vec<u8>, String>) {
    let mut last = (None, Err("it is gone".to_owned()));
    for attempt in 0..READ_TRIES {
        if attempt > 0 {
            pause();
        }
        let before = fs::metadata(path).map(|metadata| Stamp::of(&metadata));
        let content = read_bounded(path);
        let after = fs::metadata(path).map(|metadata| Stamp::of(&metadata));
        match (before, content, after) {
            (Ok(before), Ok(content), Ok(after)) if before == after => return (Some(after), Ok(content)),
            (_, content, _) => last = (None, content.map_err(|error| error.to_string())),
        }
    }
    last
}

#[expect(
    clippy::disallowed_methods,
    reason = "runs on a blocking thread; there is no condition to wait for"
)]
fn pause() {
    std::thread::sleep(READ_PAUSE);
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than fits, so that the reader sees that it does not.
    fs::File::open(path)?
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
