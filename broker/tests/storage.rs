//! The log store and the state machine against openraft's own suite, and across a reopening.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftLogStorageExt;
use openraft::storage::{RaftLogReaderExt, RaftLogStorage};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{EntryPayload, LeaderId, RaftLogReader, Vote};
use tempfile::TempDir;
use tombolo_broker::shell::raft::log_store::{Closed, LogStore};
use tombolo_broker::shell::raft::machine::Machine;
use tombolo_broker::shell::raft::types::{BrokerRaft, Entry, LogId, StorageError};
use tombolo_daemon::seam::disk::HostDisk;

struct Builder;

impl StoreBuilder<BrokerRaft, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let directory = TempDir::new().unwrap();
        let (log, _) = LogStore::open(&directory.path().join("raft.redb")).unwrap();
        let (machine, _) = Machine::open(&directory.path().join("snapshots"), Arc::new(HostDisk)).await?;
        Ok((directory, log, machine))
    }
}

#[test]
fn storage_keeps_what_raft_expects_of_it() {
    Suite::test_all(Builder).unwrap();
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1), index)
}

fn open(directory: &Path) -> (LogStore, Closed) {
    LogStore::open(&directory.join("raft.redb")).unwrap()
}

fn blank(term: u64, index: u64) -> Entry {
    Entry {
        log_id: id(term, index),
        payload: EntryPayload::Blank,
    }
}

#[tokio::test]
async fn a_reopened_log_has_what_was_acknowledged() {
    let directory = TempDir::new().unwrap();
    let (mut log, closed) = open(directory.path());
    assert!(log.is_pristine().unwrap());
    log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
    log.blocking_append((1..=10).map(|index| blank(2, index)))
        .await
        .unwrap();
    log.truncate(id(2, 8)).await.unwrap();
    log.purge(id(2, 3)).await.unwrap();
    log.blocking_append([blank(3, 8)]).await.unwrap();
    drop(log);
    closed.await.unwrap();

    let (mut log, closed) = open(directory.path());
    assert!(!log.is_pristine().unwrap());
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(3, 1)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(id(2, 3)));
    assert_eq!(state.last_log_id, Some(id(3, 8)));
    let entries = log.try_get_log_entries(0..100).await.unwrap();
    let ids: Vec<_> = entries.iter().map(|entry| entry.log_id).collect();
    assert_eq!(ids, [id(2, 4), id(2, 5), id(2, 6), id(2, 7), id(3, 8)]);
    assert_eq!(log.get_log_id(8).await.unwrap(), id(3, 8));
    drop(log);
    closed.await.unwrap();
}
