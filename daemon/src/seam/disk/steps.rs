//! The order of primitive steps that makes an operation crash-safe, said once for host and memory.
//!
//! `rename` is atomic (POSIX), but neither it nor the bytes of a file are durable before their `fsync`: first the file,
//! then its name, then the directory that holds the name.

use std::io;
use std::path::{Path, PathBuf};

/// The primitive steps of a file system.
pub(super) trait Steps {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// True when the file was made by this step.
    fn extend(&self, path: &Path, bytes: &[u8]) -> io::Result<bool>;
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn unlink(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;
}

pub(super) fn write_atomic(steps: &impl Steps, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let scratch = scratch_path(path)?;
    steps.write(&scratch, bytes)?;
    steps.sync_file(&scratch)?;
    steps.rename(&scratch, path)?;
    steps.sync_dir(parent(path))
}

pub(super) fn append(steps: &impl Steps, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let created = steps.extend(path, bytes)?;
    steps.sync_file(path)?;
    if created {
        steps.sync_dir(parent(path))
    } else {
        Ok(())
    }
}

pub(super) fn remove(steps: &impl Steps, path: &Path) -> io::Result<()> {
    match steps.unlink(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => steps.sync_dir(parent(path)),
    }
}

const SCRATCH_SUFFIX: &str = ".new";

/// Whether `name` is what [`write_atomic`] writes before it renames.
pub(super) fn is_scratch(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(SCRATCH_SUFFIX)
}

/// In the same directory, since a rename does not cross file systems; always the same name, so that what a crash
/// leaves behind is overwritten instead of piling up.
fn scratch_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} names no file", path.display()),
        )
    })?;
    let mut scratch = std::ffi::OsString::from(".");
    scratch.push(name);
    scratch.push(SCRATCH_SUFFIX);
    Ok(path.with_file_name(scratch))
}

/// The directory that holds `path`; the working directory for a bare name.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
