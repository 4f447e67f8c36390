//! The host's disk. Each call runs on tokio's blocking threads, since `fsync` can take as long as it likes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Disk;
use super::steps::{self, Steps};

/// State holds private keys: nobody but the owner reads it.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Files of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDisk;

impl Disk for HostDisk {
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<u8>>> {
        blocking("read", path, |path| fs::read(path))
    }

    fn write_atomic<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        blocking("write", path, move |path| {
            steps::write_atomic(&HostDisk, path, &bytes)
        })
    }

    fn append<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        blocking("append to", path, move |path| {
            steps::append(&HostDisk, path, &bytes)
        })
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        blocking("remove", path, |path| steps::remove(&HostDisk, path))
    }

    fn list<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        blocking("list", directory, list_files)
    }

    fn create_dir_all<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        blocking("create directory", directory, create_durably)
    }
}

impl Steps for HostDisk {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(path)?
            .write_all(bytes)
    }

    fn extend(&self, path: &Path, bytes: &[u8]) -> io::Result<bool> {
        let created = !path.try_exists()?;
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .open(path)?
            .write_all(bytes)?;
        Ok(created)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

fn list_files(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Names that are not UTF-8 are none of ours.
        if let Ok(name) = entry.file_name().into_string()
            && entry.file_type()?.is_file()
            && !steps::is_scratch(&name)
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A directory is durable once the one above it is synced, so walk down from the first that exists.
fn create_durably(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.is_dir())
        .collect();
    for ancestor in missing.into_iter().rev() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(ancestor)?;
        HostDisk.sync_dir(steps::parent(ancestor))?;
    }
    Ok(())
}

fn blocking<'a, T: Send + 'static>(
    verb: &'static str,
    path: &'a Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> BoxFuture<'a, io::Result<T>> {
    let path = PathBuf::from(path);
    async move {
        tokio::task::spawn_blocking(move || work(&path).map_err(|error| explain(verb, &path, &error)))
            .await
            .map_err(io::Error::other)?
    }
    .boxed()
}

fn explain(verb: &str, path: &Path, error: &io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "; check that the user of this process owns it",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space on its file system",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable or choose another directory",
        _ => "",
    };
    io::Error::new(
        error.kind(),
        format!("cannot {verb} {}: {error}{advice}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn files_round_trip_and_stay_private() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("state/inner");
        HostDisk.create_dir_all(&directory).await.unwrap();
        let path = directory.join("snapshot");
        for bytes in [b"one".to_vec(), b"two".to_vec()] {
            HostDisk.write_atomic(&path, bytes.clone()).await.unwrap();
            assert_eq!(HostDisk.read(&path).await.unwrap(), bytes);
        }
        HostDisk.append(&path, b"!".to_vec()).await.unwrap();
        assert_eq!(HostDisk.read(&path).await.unwrap(), b"two!");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            FILE_MODE
        );
        fs::write(directory.join(".torn.new"), b"half").unwrap();
        assert_eq!(HostDisk.list(&directory).await.unwrap(), ["snapshot"]);
        HostDisk.remove(&path).await.unwrap();
        HostDisk.remove(&path).await.unwrap();
        assert_eq!(
            HostDisk.read(&path).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[tokio::test]
    async fn errors_name_the_path() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("missing/snapshot");
        let error = HostDisk.write_atomic(&path, Vec::new()).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("cannot write {}", path.display())),
            "{error}"
        );
    }
}
