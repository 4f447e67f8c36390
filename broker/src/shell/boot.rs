//! Starting: the broker's identity, from its directory or, on the founding broker, made here.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tombolo_daemon::Seams;
use tombolo_trust::issue::{BROKER_LEAF_TTL, OPERATOR_LEAF_TTL};
use tombolo_trust::shell::files::{FileError, IdentityDir, load_kek};
use tombolo_trust::wrap::{KEK_LEN, Kek};
use tombolo_trust::{
    CertStore, Identity, IssueError, OperatorName, Root, SpiffeError, SpiffeId, Subject, TrustError,
    TrustState, TrustStore, new_key_and_csr,
};

use super::authority::{AuthorityError, random, serial, wrap_root};
use super::config::Config;
use super::raft::log_store::{Closed, LogStore, OpenError};
use super::raft::types::StorageError;
use crate::command::Command;
use crate::stored::{Corrupt, decode_batch, encode_commands};

/// Name of the first operator.
pub const FIRST_OPERATOR: &str = "admin";

/// Says that this broker has taken part in the group, so that an empty log means a lost disk.
const STARTED_FILE: &str = "started";

/// Why a broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read or written.
    #[error("{path}: {source}; check its owner and free space", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The identity directory.
    #[error(transparent)]
    Identity(#[from] FileError),
    /// No identity, and not the founder.
    #[error("there is no identity in {path}; add this broker with `tombolo broker add`, or set bootstrap = true on the one broker that founds the clusterset", path = path.display())]
    NoIdentity {
        /// The directory.
        path: PathBuf,
    },
    /// `bootstrap = true` without a name.
    #[error("bootstrap = true needs a clusterset: add clusterset = \"NAME\" to broker.toml")]
    NoName,
    /// Another broker's identity.
    #[error("{path} holds the identity of {found}, but broker.toml says id = {id}; give each broker its own data_dir", path = path.display())]
    WrongIdentity {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: SpiffeId,
        /// The configured id.
        id: u64,
    },
    /// The log is empty although this broker was part of the group.
    #[error("broker {id} has been part of a group, but its log {path} is empty: its disk was lost or rolled back. Remove it with `tombolo broker remove {id}` and add it under a new id, or restore a back-up", path = path.display())]
    DiskLost {
        /// The configured id.
        id: u64,
        /// The log.
        path: PathBuf,
    },
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The log cannot be read.
    #[error("the log cannot be read: {0}; remove this broker and add it under a new id")]
    Storage(#[from] Box<StorageError>),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A name in the configuration is no name.
    #[error(transparent)]
    Name(#[from] SpiffeError),
    /// The roots on disk are unusable.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The left-over of an interrupted founding.
    #[error("{path}: {source}; empty the data_dir and start again", path = path.display())]
    Founding {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Corrupt,
    },
}

impl From<IssueError> for BootError {
    fn from(error: IssueError) -> Self {
        Self::Authority(error.into())
    }
}

/// What a started broker has on disk.
#[derive(Debug)]
pub struct Booted {
    /// The log.
    pub log: LogStore,
    /// When it is closed again.
    pub log_closed: Closed,
    /// The key-encryption key.
    pub kek: Kek,
    /// What this broker presents.
    pub certs: Arc<CertStore>,
    /// What it accepts.
    pub trust: Arc<TrustStore>,
    /// Where its identity is kept.
    pub identity: IdentityDir,
    /// On the founding broker, until the founding is in the log.
    pub founding: Option<Command>,
}

/// Loads or founds.
///
/// # Errors
/// [`BootError`] says what to do.
pub async fn boot(config: &Config, seams: &Seams) -> Result<Booted, BootError> {
    let disk = &seams.disk;
    disk.create_dir_all(&config.data_dir)
        .await
        .map_err(at(&config.data_dir))?;
    let (log, log_closed) = LogStore::open(&config.log_path())?;
    let pristine = log.is_pristine().map_err(Box::new)?;
    let identity = IdentityDir::new(config.identity_path());
    let loaded = match identity.load() {
        Err(FileError::Missing { .. }) if config.bootstrap && pristine => {
            found(config, seams, &identity).await?;
            identity.load()?
        }
        Err(FileError::Missing { .. }) => {
            return Err(BootError::NoIdentity {
                path: config.identity_path(),
            });
        }
        loaded => loaded?,
    };
    if *loaded.id().subject() != Subject::Broker(config.id) {
        let (path, found) = (config.identity_path(), loaded.id().clone());
        return Err(BootError::WrongIdentity {
            path,
            found,
            id: config.id,
        });
    }
    let founding = read_founding(config, seams).await?;
    let has_started = has_started(config, seams).await?;
    if pristine && founding.is_none() && (has_started || config.bootstrap) {
        return Err(BootError::DiskLost {
            id: config.id,
            path: config.log_path(),
        });
    }
    let trust_domain = loaded.id().trust_domain().clone();
    let trust = TrustState::new(trust_domain, identity.load_roots()?, BTreeSet::new(), 0)?;
    Ok(Booted {
        log,
        log_closed,
        kek: load_kek(&config.kek_path())?,
        certs: CertStore::new(loaded),
        trust: TrustStore::new(trust),
        identity,
        founding,
    })
}

/// Whether this broker has taken part in a group. Only a file that is not there says no.
async fn has_started(config: &Config, seams: &Seams) -> Result<bool, BootError> {
    let path = config.data_dir.join(STARTED_FILE);
    match seams.disk.read(&path).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at(&path)(error)),
    }
}

/// Notes that this broker is part of a group, and that its founding, if any, is in the log.
///
/// # Errors
/// When the disk refuses.
pub async fn note_started(config: &Config, seams: &Seams) -> io::Result<()> {
    seams
        .disk
        .write_atomic(&config.data_dir.join(STARTED_FILE), b"1\n".to_vec())
        .await?;
    seams.disk.remove(&config.founding_path()).await
}

/// Makes the root, the first identities, and the command that puts them into the log. The identity is written last:
/// where it is, all else is.
async fn found(config: &Config, seams: &Seams, identity: &IdentityDir) -> Result<(), BootError> {
    let name = config.clusterset.clone().ok_or(BootError::NoName)?;
    let now = seams.clock.wall();
    let kek = make_kek(config, seams).await?;
    let root = Root::create(name.as_str(), serial()?, now)?;
    let command = Command::Found {
        clusterset: name,
        trust_domain: root.trust_domain().clone(),
        root: wrap_root(&root, &kek)?,
        broker: config.id,
        addresses: config.addresses(),
    };
    let path = config.founding_path();
    seams
        .disk
        .write_atomic(&path, encode_commands(&[command]).to_vec())
        .await
        .map_err(at(&path))?;
    write_operator(config, seams, &root).await?;
    issue_broker(config, seams, &root, identity)?;
    tracing::info!(trust_domain = %root.trust_domain(), operator = %config.operator_path().display(), "clusterset founded");
    Ok(())
}

/// The first operator's directory: identity, roots, and where the brokers are.
pub(super) async fn write_operator(config: &Config, seams: &Seams, root: &Root) -> Result<(), BootError> {
    let operator = SpiffeId::operator(root.trust_domain().clone(), OperatorName::parse(FIRST_OPERATOR)?);
    let (key, csr) = new_key_and_csr()?;
    let leaf = root.issue_leaf(&csr, &operator, serial()?, seams.clock.wall(), OPERATOR_LEAF_TTL)?;
    let directory = IdentityDir::new(config.operator_path());
    directory.save_roots(std::slice::from_ref(root.cert()))?;
    directory.save(&[leaf, root.cert().clone()], &key)?;
    let path = config.operator_path().join("brokers.json");
    let brokers = serde_json::json!({
        "trust_domain": root.trust_domain().to_string(),
        "brokers": [config.api.to_string()],
    });
    seams
        .disk
        .write_atomic(&path, format!("{brokers:#}\n").into_bytes())
        .await
        .map_err(at(&path))
}

/// This broker's own leaf, signed by `root`.
pub(super) fn issue_broker(
    config: &Config,
    seams: &Seams,
    root: &Root,
    identity: &IdentityDir,
) -> Result<Identity, BootError> {
    let id = SpiffeId::broker(root.trust_domain().clone(), config.id);
    let (key, csr) = new_key_and_csr()?;
    let leaf = root.issue_leaf(&csr, &id, serial()?, seams.clock.wall(), BROKER_LEAF_TTL)?;
    identity.save_roots(std::slice::from_ref(root.cert()))?;
    identity.save(&[leaf, root.cert().clone()], &key)?;
    Ok(identity.load()?)
}

async fn make_kek(config: &Config, seams: &Seams) -> Result<Kek, BootError> {
    let path = config.kek_path();
    match load_kek(&path) {
        Err(FileError::Missing { .. }) => {}
        loaded => return Ok(loaded?),
    }
    let bytes = random::<KEK_LEN>()?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    seams
        .disk
        .write_atomic(&path, format!("{digits}\n").into_bytes())
        .await
        .map_err(at(&path))?;
    Ok(load_kek(&path)?)
}

async fn read_founding(config: &Config, seams: &Seams) -> Result<Option<Command>, BootError> {
    let path = config.founding_path();
    let bytes = match seams.disk.read(&path).await {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(&path)(error)),
    };
    let batch = decode_batch(bytes).map_err(|source| BootError::Founding { path, source })?;
    Ok(batch.commands.into_iter().next())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::config::Profile;

    #[tokio::test]
    async fn only_a_missing_file_says_that_a_broker_never_started() {
        let directory = tempfile::TempDir::new().unwrap();
        let address = ([127, 0, 0, 1], 0).into();
        let config = Config {
            id: 1,
            clusterset: None,
            api: address,
            peer: address,
            admin: address,
            data_dir: directory.path().to_owned(),
            bootstrap: false,
            profile: Profile::Lan,
        };
        let seams = Seams::host();
        assert!(!has_started(&config, &seams).await.unwrap());
        // A file that is there and cannot be read.
        let path = directory.path().join(STARTED_FILE);
        std::fs::create_dir(&path).unwrap();
        let refused = has_started(&config, &seams).await.unwrap_err();
        assert!(refused.to_string().contains("started: "), "{refused}");
        std::fs::remove_dir(&path).unwrap();
        note_started(&config, &seams).await.unwrap();
        assert!(has_started(&config, &seams).await.unwrap());
    }
}
