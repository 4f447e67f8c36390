//! Durable files, as a seam.

mod host;
mod memory;
mod steps;

use std::fmt::Debug;
use std::io;
use std::path::Path;

use futures_util::future::BoxFuture;

pub use host::HostDisk;
pub use memory::MemoryDisk;

/// Small files that survive a crash. One writer per file. Errors name the path; files are readable by the owner only.
pub trait Disk: Send + Sync + Debug {
    /// The whole file; [`io::ErrorKind::NotFound`] when there is none.
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<u8>>>;

    /// Replaces the file as a whole. After a crash at any moment it holds the old bytes or the new ones, never a mix;
    /// once this returns `Ok`, the new ones.
    fn write_atomic<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>>;

    /// Adds to the end of the file, which is made when absent. Durable once this returns `Ok`; a crash before that may
    /// leave any prefix of `bytes`, so that records need a length and a checksum of their own.
    fn append<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>>;

    /// Removes the file, durably. A file that is already gone is no error.
    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Names of the files in `directory`, sorted, without what an interrupted [`Disk::write_atomic`] left behind.
    fn list<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>>;

    /// Makes `directory` and all above it.
    fn create_dir_all<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<()>>;
}
