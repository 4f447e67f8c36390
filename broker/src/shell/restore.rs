//! Back-up files, and starting a new incarnation of the clusterset from one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use openraft::{LeaderId, Membership, Vote};
use tombolo_clusterset::ClusterId;
use tombolo_daemon::Seams;
use tombolo_trust::shell::files::{IdentityDir, load_kek};

use super::authority::Authority;
use super::boot::{BootError, issue_broker, note_started, write_operator};
use super::config::Config;
use super::raft::log_store::LogStore;
use super::raft::machine::{Snapshots, snapshot_meta};
use super::raft::types::{Addresses, LogId, StoredMembership};
use super::sealed::{self, Broken, Kind};
use crate::stored::{Corrupt, decode_state, encode_state};

/// The bytes of a back-up.
pub(super) fn seal_backup(taken_unix_ms: u64, state: &[u8]) -> Vec<u8> {
    sealed::seal(Kind::Backup, &taken_unix_ms.to_be_bytes(), state)
}

/// What a restore has made, and what is left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreSummary {
    /// The new incarnation.
    pub incarnation: u64,
    /// When the back-up was taken, milliseconds since the Unix epoch.
    pub taken_unix_ms: u64,
    /// Join tokens that are void now.
    pub tokens_voided: usize,
    /// Brokers that were in the back-up and are not in the new group: add new ones under new ids.
    pub brokers_dropped: Vec<u64>,
    /// Members as of the back-up. Whichever of them was evicted since is a member again: evict it again.
    pub members: Vec<ClusterId>,
    /// Where the operator's identity was written.
    pub operator: PathBuf,
}

/// Why a restore failed; nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file cannot be read.
    #[error("cannot read the back-up {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no back-up.
    #[error("{path}: {source}", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Broken,
    },
    /// Its contents.
    #[error("{path}: {source}", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Corrupt,
    },
    /// It holds no clusterset.
    #[error("{path} was taken before the clusterset was founded; use a later one", path = path.display())]
    Unfounded {
        /// The file.
        path: PathBuf,
    },
    /// The directory is in use.
    #[error("{path} exists already; restore into an empty data_dir that holds only the kek file", path = path.display())]
    NotEmpty {
        /// The log or the snapshot that is there.
        path: PathBuf,
    },
    /// The id was used and removed.
    #[error("broker id {0} was removed from this group before; restore under a new id")]
    Retired(u64),
    /// Identity, kek or authority.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Writing the snapshot failed.
    #[error("cannot write the restored state: {0}")]
    Write(String),
}

/// Makes the data_dir of a one-broker group out of the back-up `file`. `config.data_dir` must hold the `kek` that the
/// group used, and neither log nor snapshots. The broker is then started as usual with `bootstrap = false`.
///
/// # Errors
/// [`RestoreError`].
pub async fn restore(file: &Path, config: &Config, seams: &Seams) -> Result<RestoreSummary, RestoreError> {
    let path = || file.to_owned();
    let bytes = seams
        .disk
        .read(file)
        .await
        .map_err(|source| RestoreError::Read { path: path(), source })?;
    let opened = sealed::open(Kind::Backup, bytes.into());
    let (head, body) = opened.map_err(|source| RestoreError::Broken { path: path(), source })?;
    let broken = |_| RestoreError::Broken {
        path: path(),
        source: Broken::Damaged,
    };
    let taken_unix_ms = u64::from_be_bytes(head.as_ref().try_into().map_err(broken)?);
    let mut state = decode_state(body).map_err(|source| RestoreError::Corrupt { path: path(), source })?;
    let trust = state
        .trust
        .clone()
        .ok_or_else(|| RestoreError::Unfounded { path: path() })?;
    if state.brokers.retired.contains(&config.id) {
        return Err(RestoreError::Retired(config.id));
    }
    if config.log_path().exists() {
        return Err(RestoreError::NotEmpty {
            path: config.log_path(),
        });
    }
    let directory = config.snapshots_path();
    let write = |error: &dyn std::fmt::Display| RestoreError::Write(error.to_string());
    seams
        .disk
        .create_dir_all(&directory)
        .await
        .map_err(|error| write(&error))?;
    let snapshots = Snapshots {
        directory,
        disk: Arc::clone(&seams.disk),
    };
    // A left-over snapshot of a later index would be taken for the newest at the next start.
    let left_over = snapshots.names().await.map_err(|error| write(&error))?;
    if let Some(name) = left_over.last() {
        return Err(RestoreError::NotEmpty {
            path: snapshots.directory.join(name),
        });
    }

    let kek = load_kek(&config.kek_path()).map_err(BootError::from)?;
    let authority = Authority::new(kek, Arc::clone(&seams.clock));
    let root = authority.root(&trust).map_err(BootError::from)?;

    let tokens_voided = state.tokens.len();
    let brokers_dropped = state
        .brokers
        .active
        .keys()
        .copied()
        .filter(|id| *id != config.id)
        .collect();
    let now = seams
        .clock
        .wall()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    state.begin_incarnation(now, config.id, config.addresses());

    // One entry behind the back-up, in a term of its own.
    let index = state.applied + 1;
    state.applied = index;
    let last = LogId::new(LeaderId::new(1, config.id), index);
    let nodes = BTreeMap::from([(config.id, Addresses::from(&config.addresses()))]);
    let membership = Membership::new(vec![[config.id].into()], nodes);
    let meta = snapshot_meta(Some(last), StoredMembership::new(Some(last), membership));
    snapshots
        .write(&meta, &Bytes::from(encode_state(&state)))
        .await
        .map_err(|error| write(&error))?;
    LogStore::seed(&config.log_path(), &last, &Vote::new(1, config.id)).map_err(BootError::from)?;
    write_operator(config, seams, &root).await?;
    issue_broker(config, seams, &root, &IdentityDir::new(config.identity_path()))?;
    note_started(config, seams).await.map_err(|error| write(&error))?;
    Ok(RestoreSummary {
        incarnation: state.incarnation,
        taken_unix_ms,
        tokens_voided,
        brokers_dropped,
        members: state.members.keys().cloned().collect(),
        operator: config.operator_path(),
    })
}
