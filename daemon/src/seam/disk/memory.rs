//! A disk in memory that forgets, on [`MemoryDisk::crash`], everything that was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use rand::Rng;

use super::Disk;
use super::steps::{self, Steps};

/// Files in memory, each known twice: as the process sees it and as a crash would leave it.
///
/// It takes the same steps in the same order as the host's disk. [`MemoryDisk::fail_after`] stops it between any two of
/// them, as a power cut would; [`MemoryDisk::crash`] then brings it back with what was durable.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Names as the process sees them.
    seen: BTreeMap<PathBuf, u64>,
    /// Names as the last sync of their directory left them.
    durable: BTreeMap<PathBuf, u64>,
    /// Directories are durable at once: the host makes them so.
    directories: BTreeSet<PathBuf>,
    /// Steps until the power goes; `None` is never.
    steps_left: Option<usize>,
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

impl MemoryDisk {
    /// An empty disk. The directories `/` and `.` exist.
    pub fn new() -> MemoryDisk {
        let disk = MemoryDisk::default();
        disk.state
            .lock()
            .directories
            .extend([PathBuf::from("/"), PathBuf::from(".")]);
        disk
    }

    /// Lets `steps` more primitive steps succeed; then all fail until [`MemoryDisk::crash`].
    pub fn fail_after(&self, steps: usize) {
        self.state.lock().steps_left = Some(steps);
    }

    /// Power cut and restart, at its worst: whatever was not synced is gone.
    pub fn crash(&self) {
        self.crash_with(|_| 0, || false);
    }

    /// Power cut and restart, as it happens: of what was not synced, any part may have reached the disk.
    pub fn crash_torn(&self, rng: &mut impl Rng) {
        let rng = std::cell::RefCell::new(rng);
        self.crash_with(
            |len| rng.borrow_mut().random_range(0..=len),
            || rng.borrow_mut().random(),
        );
    }

    fn crash_with(&self, kept_bytes: impl Fn(usize) -> usize, keep_name: impl Fn() -> bool) {
        let state = &mut *self.state.lock();
        state.steps_left = None;
        for inode in state.inodes.values_mut() {
            let synced = if inode.seen.starts_with(&inode.durable) {
                inode.durable.len()
            } else {
                0
            };
            let unsynced = inode.seen.len() - synced;
            let kept = kept_bytes(unsynced);
            if kept > 0 {
                inode.durable = inode.seen[..synced + kept].to_vec();
            }
            inode.seen.clone_from(&inode.durable);
        }
        let changed: Vec<PathBuf> = state
            .seen
            .keys()
            .chain(state.durable.keys())
            .filter(|path| state.seen.get(*path) != state.durable.get(*path))
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        for path in changed {
            if keep_name() {
                state.copy_name(&path);
            }
        }
        state.seen.clone_from(&state.durable);
        state.forget_unnamed();
    }
}

impl State {
    /// Spends one step; the power may be gone.
    fn step(&mut self, path: &Path) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other(format!(
                "{}: the disk has failed",
                path.display()
            ))),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn inode(&mut self, path: &Path) -> io::Result<&mut Inode> {
        self.seen
            .get(path)
            .and_then(|number| self.inodes.get_mut(number))
            .ok_or_else(|| not_found(path))
    }

    fn inode_or_new(&mut self, path: &Path) -> io::Result<(&mut Inode, bool)> {
        if !self.directories.contains(steps::parent(path)) {
            return Err(not_found(steps::parent(path)));
        }
        let created = !self.seen.contains_key(path);
        if created {
            self.seen.insert(path.to_owned(), self.next_inode);
            self.inodes.insert(self.next_inode, Inode::default());
            self.next_inode += 1;
        }
        self.inode(path).map(|inode| (inode, created))
    }

    fn copy_name(&mut self, path: &Path) {
        match self.seen.get(path) {
            Some(inode) => self.durable.insert(path.to_owned(), *inode),
            None => self.durable.remove(path),
        };
    }

    fn forget_unnamed(&mut self) {
        let named: BTreeSet<u64> = self.seen.values().chain(self.durable.values()).copied().collect();
        self.inodes.retain(|number, _| named.contains(number));
    }
}

impl Steps for MemoryDisk {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step(path)?;
        let (inode, _) = state.inode_or_new(path)?;
        inode.seen = bytes.to_vec();
        Ok(())
    }

    fn extend(&self, path: &Path, bytes: &[u8]) -> io::Result<bool> {
        let mut state = self.state.lock();
        state.step(path)?;
        let (inode, created) = state.inode_or_new(path)?;
        inode.seen.extend_from_slice(bytes);
        Ok(created)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step(path)?;
        let inode = state.inode(path)?;
        inode.durable.clone_from(&inode.seen);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step(to)?;
        let inode = state.seen.remove(from).ok_or_else(|| not_found(from))?;
        state.seen.insert(to.to_owned(), inode);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step(path)?;
        state.seen.remove(path).map(|_| ()).ok_or_else(|| not_found(path))
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step(directory)?;
        let names: BTreeSet<PathBuf> = state
            .seen
            .keys()
            .chain(state.durable.keys())
            .filter(|path| steps::parent(path) == directory)
            .cloned()
            .collect();
        for path in names {
            state.copy_name(&path);
        }
        state.forget_unnamed();
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<u8>>> {
        let mut state = self.state.lock();
        let bytes = state
            .step(path)
            .and_then(|()| state.inode(path).map(|inode| inode.seen.clone()));
        ready(bytes).boxed()
    }

    fn write_atomic<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        async move { steps::write_atomic(self, path, &bytes) }.boxed()
    }

    fn append<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        async move { steps::append(self, path, &bytes) }.boxed()
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move { steps::remove(self, path) }.boxed()
    }

    fn list<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        async move {
            let mut state = self.state.lock();
            state.step(directory)?;
            if !state.directories.contains(directory) {
                return Err(not_found(directory));
            }
            let names = state.seen.keys().filter(|path| steps::parent(path) == directory);
            let names = names.filter_map(|path| path.file_name()?.to_str());
            Ok(names
                .filter(|name| !steps::is_scratch(name))
                .map(str::to_owned)
                .collect())
        }
        .boxed()
    }

    fn create_dir_all<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let mut state = self.state.lock();
            state.step(directory)?;
            state
                .directories
                .extend(directory.ancestors().map(Path::to_owned));
            Ok(())
        }
        .boxed()
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{}: no such file or directory", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const PATH: &str = "/state/snapshot";
    const OLD: &[u8] = b"old, and longer";
    const NEW: &[u8] = b"new";
    /// write, sync, rename, sync of the directory.
    const STEPS: usize = 4;

    async fn holding(bytes: &[u8]) -> MemoryDisk {
        let disk = MemoryDisk::new();
        disk.create_dir_all(Path::new("/state")).await.unwrap();
        disk.write_atomic(Path::new(PATH), bytes.to_vec()).await.unwrap();
        disk
    }

    #[tokio::test]
    async fn an_interrupted_write_leaves_old_or_new_never_a_mix() {
        for steps in 0..=STEPS {
            for seed in 0..64 {
                let disk = holding(OLD).await;
                disk.fail_after(steps);
                let written = disk.write_atomic(Path::new(PATH), NEW.to_vec()).await;
                assert_eq!(written.is_ok(), steps == STEPS);
                disk.crash_torn(&mut StdRng::seed_from_u64(seed));
                let found = disk.read(Path::new(PATH)).await.unwrap();
                assert!(
                    found == NEW || (written.is_err() && found == OLD),
                    "after {steps} steps: {found:?}"
                );
                assert_eq!(disk.list(Path::new("/state")).await.unwrap(), ["snapshot"]);
            }
        }
    }

    #[tokio::test]
    async fn a_crash_at_its_worst_undoes_what_was_not_acknowledged() {
        for steps in 0..STEPS {
            let disk = holding(OLD).await;
            disk.fail_after(steps);
            disk.write_atomic(Path::new(PATH), NEW.to_vec())
                .await
                .unwrap_err();
            disk.crash();
            assert_eq!(
                disk.read(Path::new(PATH)).await.unwrap(),
                OLD,
                "after {steps} steps"
            );
        }
    }

    #[tokio::test]
    async fn the_model_loses_what_a_wrong_order_would_lose() {
        // Rename without syncing the file first: the name is durable, the bytes are not.
        let disk = holding(OLD).await;
        disk.write(Path::new("/state/.x"), NEW).unwrap();
        disk.rename(Path::new("/state/.x"), Path::new(PATH)).unwrap();
        disk.sync_dir(Path::new("/state")).unwrap();
        disk.crash();
        assert_eq!(disk.read(Path::new(PATH)).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn an_interrupted_append_keeps_what_was_there_and_a_prefix() {
        for seed in 0..64 {
            let disk = holding(OLD).await;
            disk.fail_after(1);
            disk.append(Path::new(PATH), NEW.to_vec()).await.unwrap_err();
            disk.crash_torn(&mut StdRng::seed_from_u64(seed));
            let found = disk.read(Path::new(PATH)).await.unwrap();
            let tail = found.strip_prefix(OLD).unwrap();
            assert!(NEW.starts_with(tail));
        }
    }

    #[tokio::test]
    async fn a_removed_file_stays_removed() {
        let disk = holding(OLD).await;
        disk.remove(Path::new(PATH)).await.unwrap();
        disk.crash();
        assert_eq!(
            disk.read(Path::new(PATH)).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
