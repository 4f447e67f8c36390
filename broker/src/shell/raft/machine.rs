//! The state machine as Raft drives it: applied in memory, durable as snapshots plus log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, RaftSnapshotBuilder, StorageIOError};
use parking_lot::RwLock;
use tokio::sync::watch;
use tombolo_daemon::seam::disk::Disk;

use super::types::{
    BrokerRaft, Entry, LogId, Outcomes, Snapshot, SnapshotMeta, StorageError, StoredMembership,
};
use crate::bounds::WATCH_LOG_MAX;
use crate::shell::sealed::{self, Kind};
use crate::state::{self, State};
use crate::stored::{Outcome, decode_batch, decode_state, encode_state};
use crate::watch_log::WatchLog;

/// The applied state that all parts of a broker read. One writer: Raft.
#[derive(Debug)]
pub struct Replica {
    inner: RwLock<Inner>,
    applied: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    changes: WatchLog,
    last: Option<LogId>,
    membership: StoredMembership,
}

impl Replica {
    fn new(state: State, last: Option<LogId>, membership: StoredMembership) -> Self {
        let applied = state.applied;
        let changes = WatchLog::new(WATCH_LOG_MAX, applied);
        let inner = RwLock::new(Inner {
            state,
            changes,
            last,
            membership,
        });
        Self {
            inner,
            applied: watch::Sender::new(applied),
        }
    }

    /// Reads the applied state. `read` runs under a lock: take what you need and leave.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.inner.read().state)
    }

    /// Reads the applied state together with the log of changes.
    pub fn read_changes<T>(&self, read: impl FnOnce(&State, &WatchLog) -> T) -> T {
        let inner = self.inner.read();
        read(&inner.state, &inner.changes)
    }

    /// Follows the index of the last applied entry.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn apply(&self, entry: Entry) -> Result<Outcomes, StorageError> {
        let log_id = entry.log_id;
        let batch = match &entry.payload {
            EntryPayload::Normal(encoded) => {
                // A batch this build cannot read must not be skipped: the broker stops and says so.
                let batch = decode_batch(encoded.0.clone());
                Some(batch.map_err(|error| StorageIOError::apply(log_id, AnyError::new(&error)))?)
            }
            EntryPayload::Blank | EntryPayload::Membership(_) => None,
        };
        let mut inner = self.inner.write();
        inner.last = Some(log_id);
        if let EntryPayload::Membership(membership) = entry.payload {
            inner.membership = StoredMembership::new(Some(log_id), membership);
        }
        let Some(batch) = batch else {
            inner.state.applied = log_id.index;
            return Ok(Outcomes::default());
        };
        let applied = state::apply(&mut inner.state, log_id.index, batch);
        inner.changes.push(log_id.index, applied.changed);
        Ok(Outcomes(
            applied.verdicts.into_iter().map(Outcome::from).collect(),
        ))
    }

    fn replace(&self, state: State, meta: &SnapshotMeta) {
        let fresh = Self::new(state, meta.last_log_id, meta.last_membership.clone())
            .inner
            .into_inner();
        let mut inner = self.inner.write();
        *inner = fresh;
        let applied = inner.state.applied;
        drop(inner);
        self.applied.send_replace(applied);
    }
}

/// The state machine of one broker.
#[derive(Debug)]
pub struct Machine {
    replica: Arc<Replica>,
    snapshots: Snapshots,
}

impl Machine {
    /// Starts from the newest snapshot in `directory`, or from nothing. Raft replays the log behind it.
    ///
    /// # Errors
    /// When the directory or the snapshot cannot be read.
    pub async fn open(directory: &Path, disk: Arc<dyn Disk>) -> Result<(Self, Arc<Replica>), StorageError> {
        let snapshots = Snapshots {
            directory: directory.to_owned(),
            disk,
        };
        snapshots
            .disk
            .create_dir_all(directory)
            .await
            .map_err(|error| read_failed(&error))?;
        let replica = match snapshots.newest().await? {
            Some((meta, body)) => {
                let state = decode_state(body).map_err(|error| read_failed(&error))?;
                Replica::new(state, meta.last_log_id, meta.last_membership)
            }
            None => Replica::new(State::default(), None, StoredMembership::default()),
        };
        let replica = Arc::new(replica);
        Ok((
            Self {
                replica: Arc::clone(&replica),
                snapshots,
            },
            replica,
        ))
    }
}

impl RaftStateMachine<BrokerRaft> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let inner = self.replica.inner.read();
        Ok((inner.last, inner.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let outcomes = entries
            .into_iter()
            .map(|entry| self.replica.apply(entry))
            .collect();
        let applied = self.replica.read(|state| state.applied);
        self.replica.applied.send_replace(applied);
        outcomes
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            replica: Arc::clone(&self.replica),
            snapshots: self.snapshots.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Bytes>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Bytes>,
    ) -> Result<(), StorageError> {
        let state = decode_state(Bytes::clone(&snapshot)).map_err(|error| read_failed(&error))?;
        self.snapshots.write(meta, &snapshot).await?;
        self.replica.replace(state, meta);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let newest = self.snapshots.newest().await?;
        Ok(newest.map(|(meta, body)| Snapshot {
            meta,
            snapshot: Box::new(body),
        }))
    }
}

/// Builds snapshots beside the running state machine.
#[derive(Debug)]
pub struct Builder {
    replica: Arc<Replica>,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<BrokerRaft> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (state, meta) = {
            let inner = self.replica.inner.read();
            (
                inner.state.clone(),
                snapshot_meta(inner.last, inner.membership.clone()),
            )
        };
        let body = tokio::task::spawn_blocking(move || Bytes::from(encode_state(&state)));
        let body = body.await.map_err(|error| write_failed(&error))?;
        self.snapshots.write(&meta, &body).await?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(body),
        })
    }
}

/// The metadata of a snapshot at `last`.
pub(crate) fn snapshot_meta(last: Option<LogId>, membership: StoredMembership) -> SnapshotMeta {
    let snapshot_id = last.map_or_else(|| "0".to_owned(), |id| format!("{}-{}", id.leader_id, id.index));
    SnapshotMeta {
        last_log_id: last,
        last_membership: membership,
        snapshot_id,
    }
}

/// Snapshot files: `<index>.snap`, each replaced whole and checksummed; only the newest is kept.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    pub(crate) directory: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
}

impl Snapshots {
    pub(crate) async fn write(&self, meta: &SnapshotMeta, body: &Bytes) -> Result<(), StorageError> {
        let head = postcard::to_stdvec(meta).map_err(|error| write_failed(&error))?;
        let body = body.clone();
        let sealing = tokio::task::spawn_blocking(move || sealed::seal(Kind::Snapshot, &head, &body));
        let sealed = sealing.await.map_err(|error| write_failed(&error))?;
        let name = format!("{:020}.snap", meta.last_log_id.map_or(0, |id| id.index));
        let written = self.disk.write_atomic(&self.directory.join(&name), sealed).await;
        written.map_err(|error| write_failed(&error))?;
        for older in self.names().await?.into_iter().filter(|found| *found < name) {
            self.disk
                .remove(&self.directory.join(older))
                .await
                .map_err(|error| write_failed(&error))?;
        }
        Ok(())
    }

    async fn newest(&self) -> Result<Option<(SnapshotMeta, Bytes)>, StorageError> {
        let Some(name) = self.names().await?.pop() else {
            return Ok(None);
        };
        let path = self.directory.join(name);
        let bytes = self.disk.read(&path).await.map_err(|error| read_failed(&error))?;
        let opened = sealed::open(Kind::Snapshot, bytes.into());
        let (head, body) = opened.map_err(|broken| {
            read_failed(&std::io::Error::other(format!(
                "{}: {broken}. Remove this broker from the group and add it under a new id",
                path.display()
            )))
        })?;
        let meta = postcard::from_bytes(&head).map_err(|error| read_failed(&error))?;
        Ok(Some((meta, body)))
    }

    /// Oldest first.
    pub(crate) async fn names(&self) -> Result<Vec<String>, StorageError> {
        let mut names = self
            .disk
            .list(&self.directory)
            .await
            .map_err(|error| read_failed(&error))?;
        names.retain(|name| name.ends_with(".snap"));
        names.sort_unstable();
        Ok(names)
    }
}

fn read_failed<E: std::error::Error + 'static>(error: &E) -> StorageError {
    StorageIOError::read_snapshot(None, AnyError::new(error)).into()
}

fn write_failed<E: std::error::Error + 'static>(error: &E) -> StorageError {
    StorageIOError::write_snapshot(None, AnyError::new(error)).into()
}
