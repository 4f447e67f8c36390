//! What to send to the broker: full state first, then deltas, each until it is acknowledged.
//!
//! Call order of one stream: [`Publisher::open`], [`Publisher::granted`], then [`Publisher::next_message`] until it gives nothing;
//! after each [`Publisher::want`], [`Publisher::accepted`] and [`Publisher::rejected`] again; [`Publisher::lost`] at its end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tombolo_clusterset::{Export, ServiceKey};
use tombolo_wire::v1;
use tombolo_wire::v1::publish_request::Request;

/// Most changes sent and not yet acknowledged: enough to keep a broker 50 ms away busy at 5,000 changes a second, and a bound
/// on what a slow one must hold.
pub const MAX_IN_FLIGHT: usize = 256;

/// How far one export has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Not acknowledged yet.
    Pending,
    /// The broker has it, at this log index.
    Accepted {
        /// Log index.
        log_index: u64,
    },
    /// The broker refuses it.
    Rejected {
        /// Why.
        reason: String,
    },
}

/// What the broker granted for this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Publish epoch.
    pub epoch: u64,
    /// Lease term, milliseconds.
    pub lease_term_ms: u64,
    /// Incarnation of the clusterset.
    pub incarnation: u64,
}

#[derive(Debug, Clone)]
enum Sent {
    Upsert(ServiceKey, Arc<Export>),
    Delete(ServiceKey),
    InitDone,
}

/// One stream.
#[derive(Debug, Default)]
struct Stream {
    sequence: u64,
    /// Sent in this stream, whether acknowledged or not.
    sent: BTreeMap<ServiceKey, Arc<Export>>,
    in_flight: BTreeMap<u64, Sent>,
    init: Init,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Init {
    #[default]
    NotBegun,
    Running,
    Done,
}

/// Decides what to publish. Pure: it makes messages and reads replies.
#[derive(Debug, Default)]
pub struct Publisher {
    wanted: BTreeMap<ServiceKey, Arc<Export>>,
    /// Keys whose wanted state may differ from what was sent.
    dirty: VecDeque<ServiceKey>,
    progress: BTreeMap<ServiceKey, Progress>,
    stream: Option<Stream>,
    granted: bool,
    epoch: u64,
    incarnation: u64,
    lease_term: Option<Duration>,
}

impl Publisher {
    /// Takes what is to be offered from now on.
    pub fn want(&mut self, wanted: &BTreeMap<ServiceKey, Arc<Export>>) {
        for (key, export) in wanted {
            let same = self
                .wanted
                .get(key)
                .is_some_and(|old| Arc::ptr_eq(old, export) || old == export);
            if !same {
                self.progress.insert(key.clone(), Progress::Pending);
                self.dirty.push_back(key.clone());
            }
        }
        for key in self.wanted.keys().filter(|key| !wanted.contains_key(*key)) {
            self.progress.remove(key);
            self.dirty.push_back(key.clone());
        }
        self.wanted.clone_from(wanted);
    }

    /// The epoch to ask for: the one held, 0 for a new one.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A new stream begins; its first message is the caller's `PublishOpen` with [`Publisher::epoch`].
    pub fn open(&mut self) {
        self.stream = Some(Stream::default());
        self.granted = false;
    }

    /// The broker granted the stream: a full state follows.
    pub fn granted(&mut self, grant: Grant) {
        self.granted = true;
        self.epoch = grant.epoch;
        self.incarnation = grant.incarnation;
        self.lease_term = Some(Duration::from_millis(grant.lease_term_ms));
        self.dirty = self.wanted.keys().cloned().collect();
    }

    /// The stream ended. What it left unacknowledged is pending again.
    pub fn lost(&mut self) {
        self.stream = None;
        self.granted = false;
    }

    /// The epoch held is worth nothing any more: a newer agent took over, or the clusterset was restored.
    pub fn forget_epoch(&mut self) {
        self.epoch = 0;
        self.lost();
    }

    /// The incarnation in which the epoch was granted; 0 before the first grant.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The lease term that was granted last; None before the first grant.
    #[must_use]
    pub fn lease_term(&self) -> Option<Duration> {
        self.lease_term
    }

    /// The next message; None when all is sent, or too much is unacknowledged.
    pub fn next_message(&mut self) -> Option<v1::PublishRequest> {
        let stream = self.stream.as_mut().filter(|_| self.granted)?;
        if stream.init == Init::NotBegun {
            stream.init = Init::Running;
            return Some(request(Request::Init(v1::PublishInit {})));
        }
        if stream.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        while let Some(key) = self.dirty.pop_front() {
            match (self.wanted.get(&key), stream.sent.get(&key)) {
                (Some(wanted), Some(sent)) if wanted == sent => {}
                (Some(wanted), _) => return Some(stream.upsert(key, Arc::clone(wanted))),
                (None, Some(_)) => return Some(stream.delete(key)),
                (None, None) => {}
            }
        }
        if stream.init == Init::Running {
            stream.init = Init::Done;
            return Some(stream.init_done());
        }
        None
    }

    /// The broker acknowledges a change.
    pub fn accepted(&mut self, sequence: u64, log_index: u64) {
        if let Some(Sent::Upsert(key, export)) = self.acknowledge(sequence) {
            self.settle(&key, &export, Progress::Accepted { log_index });
        }
    }

    /// The broker refuses one export; the others stand. It is offered again when it changes, or on the next stream. The
    /// service that was refused, when the broker named a change of ours.
    pub fn rejected(&mut self, sequence: u64, reason: &str) -> Option<ServiceKey> {
        match self.acknowledge(sequence)? {
            Sent::Upsert(key, export) => {
                self.settle(
                    &key,
                    &export,
                    Progress::Rejected {
                        reason: reason.to_owned(),
                    },
                );
                Some(key)
            }
            Sent::Delete(key) => Some(key),
            Sent::InitDone => None,
        }
    }

    fn acknowledge(&mut self, sequence: u64) -> Option<Sent> {
        self.stream.as_mut()?.in_flight.remove(&sequence)
    }

    /// Only what is still wanted has a progress worth telling.
    fn settle(&mut self, key: &ServiceKey, export: &Arc<Export>, progress: Progress) {
        if self.wanted.get(key) == Some(export) {
            self.progress.insert(key.clone(), progress);
        }
    }

    /// How far the export of `key` has come.
    #[must_use]
    pub fn progress(&self, key: &ServiceKey) -> Option<&Progress> {
        self.progress.get(key)
    }

    /// Changes sent and not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.stream.as_ref().map_or(0, |stream| stream.in_flight.len())
    }

    /// Whether the broker has all that is wanted.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.dirty.is_empty()
            && self
                .stream
                .as_ref()
                .is_some_and(|stream| stream.init == Init::Done && stream.in_flight.is_empty())
    }
}

impl Stream {
    fn sequence(&mut self, sent: Sent) -> u64 {
        self.sequence += 1;
        self.in_flight.insert(self.sequence, sent);
        self.sequence
    }

    fn upsert(&mut self, key: ServiceKey, export: Arc<Export>) -> v1::PublishRequest {
        self.sent.insert(key.clone(), Arc::clone(&export));
        let message = v1::Export::from(export.as_ref());
        let sequence = self.sequence(Sent::Upsert(key, export));
        request(Request::Upsert(v1::PublishUpsert {
            sequence,
            export: Some(message),
        }))
    }

    fn delete(&mut self, key: ServiceKey) -> v1::PublishRequest {
        self.sent.remove(&key);
        let message = v1::ServiceKey::from(&key);
        let sequence = self.sequence(Sent::Delete(key));
        request(Request::Delete(v1::PublishDelete {
            sequence,
            key: Some(message),
        }))
    }

    fn init_done(&mut self) -> v1::PublishRequest {
        let sequence = self.sequence(Sent::InitDone);
        request(Request::InitDone(v1::PublishInitDone { sequence }))
    }
}

/// A message of the publish stream.
#[must_use]
pub fn request(request: Request) -> v1::PublishRequest {
    v1::PublishRequest {
        request: Some(request),
    }
}

#[cfg(test)]
mod tests;
