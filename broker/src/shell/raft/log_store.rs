//! The log, the vote and the commit mark in redb.
//!
//! Every write goes through one thread, in its order, and is durable when it is answered; a commit blocks, so it
//! never runs on the reactor. Reads are short transactions on the same database and run where they are asked.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, RaftLogId, RaftLogReader, StorageIOError, Vote};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::types::{BrokerRaft, Entry, LogId, RAFT_FORMAT, StorageError};
use crate::bounds::APPEND_MAX_BYTES;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// Writes that wait for the one in progress. Raft has at most one of each kind under way.
const WRITES_MAX: usize = 16;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database refuses.
    #[error("cannot open the log {path}: {source}; check its owner and free space, and that no other broker uses it", path = path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// A newer build wrote it.
    #[error("the log {path} has format {found}, this build reads up to {RAFT_FORMAT}; upgrade this broker", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// No thread for the writes.
    #[error("cannot start the log's thread: {0}; check the limit of processes")]
    Thread(#[from] std::io::Error),
}

/// The log of one broker. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    database: Arc<Database>,
    writes: mpsc::Sender<(Write, oneshot::Sender<Result<(), redb::Error>>)>,
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").finish_non_exhaustive()
    }
}

/// Resolves when the log is closed.
pub type Closed = oneshot::Receiver<()>;

/// One transaction.
enum Write {
    Append(Vec<(u64, Vec<u8>)>),
    /// From this index on.
    Truncate(u64),
    /// Up to this index, with the encoded log id.
    Purge(u64, Vec<u8>),
    Vote(Vec<u8>),
    Committed(Vec<u8>),
}

impl LogStore {
    /// Opens or makes the log at `path`. The receiver resolves when the last clone is gone and the file is closed.
    ///
    /// # Errors
    /// [`OpenError`] names the file.
    pub fn open(path: &Path) -> Result<(Self, Closed), OpenError> {
        let failed = |source: redb::Error| OpenError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        let found = prepare(&database).map_err(failed)?;
        if found > RAFT_FORMAT {
            return Err(OpenError::Format {
                path: path.to_owned(),
                found,
            });
        }
        let database = Arc::new(database);
        let (writes, incoming) = mpsc::channel(WRITES_MAX);
        let writer = Arc::clone(&database);
        let (closing, closed) = oneshot::channel();
        std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || {
                write_loop(&writer, incoming);
                drop(writer);
                // Nobody may be waiting for it.
                let _ = closing.send(());
            })?;
        Ok((Self { database, writes }, closed))
    }

    /// Makes the log of a broker that starts from a restored snapshot: empty behind `last`, with a vote of its term.
    ///
    /// # Errors
    /// When the database fails.
    pub fn seed(path: &Path, last: &LogId, vote: &Vote<u64>) -> Result<(), OpenError> {
        let failed = |source: redb::Error| OpenError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        prepare(&database).map_err(failed)?;
        let encode = |bytes: Result<Vec<u8>, postcard::Error>| {
            bytes.map_err(|error| failed(redb::Error::Corrupted(error.to_string())))
        };
        let purge = Write::Purge(last.index, encode(postcard::to_stdvec(last))?);
        let vote = Write::Vote(encode(postcard::to_stdvec(vote))?);
        commit(&database, purge)
            .and_then(|()| commit(&database, vote))
            .map_err(failed)
    }

    /// Whether nothing was ever written.
    ///
    /// # Errors
    /// When the database fails.
    pub fn is_pristine(&self) -> Result<bool, StorageError> {
        let vote: Option<Vote<u64>> = self.meta(VOTE)?;
        let purged: Option<LogId> = self.meta(PURGED)?;
        Ok(vote.is_none() && purged.is_none() && self.entries(.., usize::MAX)?.is_empty())
    }

    async fn write(&self, write: Write) -> Result<(), StorageError> {
        let (done, answer) = oneshot::channel();
        let gone = || StorageIOError::write(AnyError::error("the log's thread is gone"));
        self.writes.send((write, done)).await.map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(|error| StorageIOError::write(AnyError::new(&error)).into())
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StorageError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        let bytes = read().map_err(|error| StorageIOError::read(AnyError::new(&error)))?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    fn entries(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> Result<Vec<Entry>, StorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(range) {
            return Ok(Vec::new());
        }
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            let mut found = Vec::new();
            let mut bytes = 0;
            for entry in table.range(range)? {
                let entry = entry?.1.value().to_vec();
                bytes += entry.len();
                // At least one, so that replication always moves on.
                if bytes > max_bytes && !found.is_empty() {
                    break;
                }
                found.push(entry);
            }
            Ok(found)
        };
        let found = read().map_err(|error| StorageIOError::read_logs(AnyError::new(&error)))?;
        found.iter().map(|bytes| decode(bytes)).collect()
    }
}

impl RaftLogReader<BrokerRaft> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(range, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(start..end, APPEND_MAX_BYTES)
    }
}

impl RaftLogStorage<BrokerRaft> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<BrokerRaft>, StorageError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            Ok(table.last()?.map(|(_, entry)| entry.value().to_vec()))
        };
        let last = read().map_err(|error| StorageIOError::read_logs(AnyError::new(&error)))?;
        let last = last.map(|bytes| decode::<Entry>(&bytes)).transpose()?;
        let last_purged_log_id = self.meta(PURGED)?;
        let last_log_id = last.map(|entry| *entry.get_log_id()).or(last_purged_log_id);
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError> {
        self.write(Write::Vote(encode(vote)?)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError> {
        self.meta(VOTE)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.write(Write::Committed(encode(&committed)?)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.meta::<Option<LogId>>(COMMITTED)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<BrokerRaft>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let encoded: Result<Vec<_>, StorageError> = entries
            .into_iter()
            .map(|entry| Ok((entry.get_log_id().index, encode(&entry)?)))
            .collect();
        let result = self.write(Write::Append(encoded?)).await;
        callback.log_io_completed(
            result
                .as_ref()
                .map(|_| ())
                .map_err(|error| std::io::Error::other(error.clone())),
        );
        result
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Write::Truncate(log_id.index)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Write::Purge(log_id.index, encode(&log_id)?)).await
    }
}

/// Makes the tables; returns the format.
fn prepare(database: &Database) -> Result<u32, redb::Error> {
    let transaction = database.begin_write()?;
    let found = {
        transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        let known = meta
            .get(FORMAT)?
            .and_then(|value| value.value().try_into().ok())
            .map(u32::from_be_bytes);
        if known.is_none() {
            meta.insert(FORMAT, RAFT_FORMAT.to_be_bytes().as_slice())?;
        }
        known.unwrap_or(RAFT_FORMAT)
    };
    transaction.commit()?;
    Ok(found)
}

fn write_loop(
    database: &Database,
    mut incoming: mpsc::Receiver<(Write, oneshot::Sender<Result<(), redb::Error>>)>,
) {
    while let Some((write, done)) = incoming.blocking_recv() {
        // Whoever no longer waits has stopped; the write stands all the same.
        let _ = done.send(commit(database, write));
    }
}

fn commit(database: &Database, write: Write) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    if matches!(write, Write::Committed(_)) {
        // Only a hint: losing it costs a restart some waiting, and the next durable write carries it along.
        transaction.set_durability(Durability::None)?;
    }
    {
        let mut log = transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        match write {
            Write::Append(entries) => {
                for (index, entry) in entries {
                    log.insert(index, entry.as_slice())?;
                }
            }
            Write::Truncate(from) => log.retain_in(from.., |_, _| false)?,
            Write::Purge(through, log_id) => {
                log.retain_in(..=through, |_, _| false)?;
                meta.insert(PURGED, log_id.as_slice())?;
            }
            Write::Vote(vote) => drop(meta.insert(VOTE, vote.as_slice())?),
            Write::Committed(committed) => drop(meta.insert(COMMITTED, committed.as_slice())?),
        }
    }
    transaction.commit()?;
    Ok(())
}

/// redb refuses a range that ends before it starts.
fn is_empty((start, end): (Bound<u64>, Bound<u64>)) -> bool {
    match (start, end) {
        (Bound::Included(start), Bound::Excluded(end)) => start >= end,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Excluded(start), Bound::Excluded(end) | Bound::Included(end)) => start >= end,
        _ => false,
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StorageError> {
    postcard::to_stdvec(value).map_err(|error| StorageIOError::write(AnyError::new(&error)).into())
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StorageError> {
    postcard::from_bytes(bytes).map_err(|error| StorageIOError::read(AnyError::new(&error)).into())
}
