//! An identity on disk:
//!
//! ```text
//! <dir>/key.pem    the leaf's key, and after it the one before; mode 0600
//! <dir>/cert.pem   the leaf, then what it is sent with
//! <dir>/roots.pem  the trusted roots
//! ```
//! Each file is replaced whole (written beside, synced, renamed). A crash between `key.pem` and `cert.pem` leaves the
//! old certificate with its key still in `key.pem`, second; loading takes the key that belongs to the certificate.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::bundle::{PemError, certs_from_pem, certs_to_pem, key_to_pem, keys_from_pem};
use crate::store::{Identity, IdentityError};
use crate::wrap::{Kek, WrapError};

/// The key's file name.
pub const KEY_FILE: &str = "key.pem";
/// The chain's file name.
pub const CERT_FILE: &str = "cert.pem";
/// The roots' file name.
pub const ROOTS_FILE: &str = "roots.pem";

/// Largest file that is read, bytes: sixteen certificates of 2 KiB, twice over.
pub const FILE_MAX: u64 = 64 * 1024;

const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

/// Why an identity was not loaded or saved; each names its file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file: the cluster or role has no identity yet.
    #[error("{path} does not exist; join the cluster first (`tombolo join`), or check the directory", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("cannot read {path}: {source}; check its owner and mode", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {path}: {source}; check the directory's owner and free space", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than [`FILE_MAX`].
    #[error("{path} is larger than {FILE_MAX} bytes; it is not an identity file", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The contents are no PEM of the wanted kind.
    #[error("{path}: {source}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: PemError,
    },
    /// Key and certificate are no identity.
    #[error("{path}: {source}", path = path.display())]
    Identity {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// A key file holds no key-encryption key.
    #[error("{path}: {source}", path = path.display())]
    Kek {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: WrapError,
    },
}

/// A directory that holds one identity.
#[derive(Debug, Clone)]
pub struct IdentityDir {
    dir: PathBuf,
}

impl IdentityDir {
    /// The identity directory at `dir`; it need not exist yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Loads the identity.
    ///
    /// # Errors
    /// [`FileError::Missing`] when there is none; others name the file that is wrong.
    pub fn load(&self) -> Result<Identity, FileError> {
        let (chain, key) = self.load_chain_and_key()?;
        Identity::new(chain, &key).map_err(|source| FileError::Identity {
            path: self.dir.clone(),
            source,
        })
    }

    /// Loads the chain and the key that belongs to its leaf, as an agent does with its intermediate.
    ///
    /// # Errors
    /// As [`IdentityDir::load`].
    pub fn load_chain_and_key(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), FileError> {
        let chain = self.load_certs(CERT_FILE)?;
        let path = self.dir.join(KEY_FILE);
        let keys = keys_from_pem(&read(&path)?).map_err(|source| FileError::Pem { path, source })?;
        let mut failure = None;
        for key in keys {
            match Identity::new(chain.clone(), &key) {
                Ok(_) => return Ok((chain, key)),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let source = failure.unwrap_or(IdentityError::Key {
            reason: "the file holds none".to_owned(),
        });
        Err(FileError::Identity {
            path: self.dir.clone(),
            source,
        })
    }

    /// Loads the trusted roots.
    ///
    /// # Errors
    /// As [`IdentityDir::load`].
    pub fn load_roots(&self) -> Result<Vec<CertificateDer<'static>>, FileError> {
        self.load_certs(ROOTS_FILE)
    }

    /// Saves a chain with its key: survives a crash at any point with the old pair or the new one. The directory is
    /// made, mode 0700, if it does not exist.
    ///
    /// # Errors
    /// [`FileError::Write`]; the old pair is then still there.
    pub fn save(&self, chain: &[CertificateDer<'_>], key: &PrivateKeyDer<'_>) -> Result<(), FileError> {
        self.make()?;
        let mut keys = key_to_pem(key);
        match self.load_chain_and_key() {
            Ok((_, present)) if present.secret_der() != key.secret_der() => {
                keys.push_str(&key_to_pem(&present))
            }
            // The same key, none yet, or a pair that was already unusable: there is none to keep.
            Ok(_) | Err(_) => {}
        }
        write_atomically(&self.dir.join(KEY_FILE), keys.as_bytes(), SECRET_MODE)?;
        write_atomically(
            &self.dir.join(CERT_FILE),
            certs_to_pem(chain).as_bytes(),
            PUBLIC_MODE,
        )
    }

    /// Saves the trusted roots.
    ///
    /// # Errors
    /// [`FileError::Write`]; the old roots are then still there.
    pub fn save_roots(&self, roots: &[CertificateDer<'_>]) -> Result<(), FileError> {
        self.make()?;
        write_atomically(
            &self.dir.join(ROOTS_FILE),
            certs_to_pem(roots).as_bytes(),
            PUBLIC_MODE,
        )
    }

    fn make(&self) -> Result<(), FileError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| FileError::Write {
                path: self.dir.clone(),
                source,
            })
    }

    fn load_certs(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, FileError> {
        let path = self.dir.join(name);
        certs_from_pem(&read(&path)?).map_err(|source| FileError::Pem { path, source })
    }
}

/// Loads a key-encryption key from its file, see [`Kek::from_file_contents`].
///
/// # Errors
/// [`FileError`] names the file.
pub fn load_kek(path: &Path) -> Result<Kek, FileError> {
    Kek::from_file_contents(&read(path)?).map_err(|source| FileError::Kek {
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing {
            path: path.to_owned(),
        },
        _ => FileError::Read {
            path: path.to_owned(),
            source,
        },
    };
    let mut contents = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(FILE_MAX + 1)
        .read_to_end(&mut contents)
        .map_err(failed)?;
    if contents.len() as u64 > FILE_MAX {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(contents)
}

/// Writes beside `path`, syncs, renames over it, and syncs the directory. One writer per directory: the temporary
/// name is fixed, so that a crash leaves one file at most, which the next write takes over.
fn write_atomically(path: &Path, contents: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError::Write {
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("pem.new");
    // A left-over may have another mode, and `mode` applies to new files only.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(contents).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests;
