//! The deterministic state machine: the same log gives the same state on every broker.
//!
//! [`apply`] takes one log entry and returns a [`Verdict`] for each of its commands. Nothing here reads a clock or
//! draws entropy: time is the replicated clock, max(previous, leader's wall clock), and ids are log positions.
//! Each topic decides in a module of its own; what changed is collected as [`EntryKey`]s, from which the watch log feeds
//! its watchers.

mod brokers;
mod drills;
mod exports;
mod grants;
mod members;
pub mod refusal;
mod tokens;
mod trust;

use std::collections::BTreeMap;
use std::sync::Arc;

use tombolo_clusterset::policy::Grants;
use tombolo_clusterset::{ClusterId, DrillId, ExportRecord, Label, Namespace, ServiceKey};
use tombolo_trust::TokenId;

pub use brokers::Brokers;
pub use drills::{Drills, FinishedDrill, RunningDrill};
pub use members::{Admission, IssuedKey, Member};
pub use refusal::{Class, Refusal};
pub use tokens::TokenRecord;
pub use trust::{DeniedKey, Stage, Trust, bounded_lagging};

use crate::command::{Batch, Command, Reply};

/// What a command led to.
pub type Verdict = Result<Reply, Refusal>;

/// Names what a watcher holds a copy of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKey {
    /// A member and its lease.
    Member(ClusterId),
    /// What a cluster offers.
    Export(ServiceKey, ClusterId),
    /// Who may import it.
    Grant(ServiceKey, ClusterId),
    /// Who may export from a namespace.
    Reservation(Namespace),
    /// Roots and denied keys.
    Trust,
    /// A running drill.
    Drill(DrillId),
    /// Addresses of the brokers.
    Brokers,
}

/// Everything the broker group agrees on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Rises with each restore from a back-up; 0 until the clusterset is founded.
    pub incarnation: u64,
    /// Name of the clusterset; None until it is founded.
    pub clusterset: Option<Label>,
    /// The replicated clock, milliseconds since the Unix epoch.
    pub clock_ms: u64,
    /// Log index of the last entry that was applied.
    pub applied: u64,
    /// Above every publish epoch of members that are gone, and of earlier incarnations, so that an epoch is never granted twice to one name.
    pub epoch_floor: u64,
    /// Members by id.
    pub members: BTreeMap<ClusterId, Member>,
    /// What they offer.
    pub exports: BTreeMap<ServiceKey, BTreeMap<ClusterId, Arc<ExportRecord>>>,
    /// Endpoints over all exports.
    pub endpoints: usize,
    /// Join tokens, hashed.
    pub tokens: BTreeMap<TokenId, TokenRecord>,
    /// Grants and reservations.
    pub grants: Grants,
    /// Roots and denied keys; None until the clusterset is founded.
    pub trust: Option<Trust>,
    /// The running drill and the finished ones.
    pub drills: Drills,
    /// The brokers of the group.
    pub brokers: Brokers,
}

/// What one log entry did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// One for each command, in their order.
    pub verdicts: Vec<Verdict>,
    /// What watchers must be told, each once.
    pub changed: Vec<EntryKey>,
}

/// Where a command is decided: the state, its position, and the changes so far.
struct Entry<'a> {
    state: &'a mut State,
    index: u64,
    changed: std::collections::BTreeSet<EntryKey>,
}

/// Applies the log entry at `index`.
pub fn apply(state: &mut State, index: u64, batch: Batch) -> Applied {
    state.clock_ms = state.clock_ms.max(batch.unix_ms);
    state.applied = index;
    let mut entry = Entry {
        state,
        index,
        changed: std::collections::BTreeSet::new(),
    };
    entry.expire();
    let verdicts = batch
        .commands
        .into_iter()
        .map(|command| entry.decide(command))
        .collect();
    Applied {
        verdicts,
        changed: entry.changed.into_iter().collect(),
    }
}

impl Entry<'_> {
    fn decide(&mut self, command: Command) -> Verdict {
        if let Command::Found {
            clusterset,
            trust_domain,
            root,
            broker,
            addresses,
        } = command
        {
            return self.found(clusterset, trust_domain, root, broker, addresses);
        }
        if self.state.incarnation == 0 {
            return Err(Refusal::NotFounded);
        }
        match command {
            // Decided above.
            Command::Found { .. } => Err(Refusal::AlreadyFounded),
            Command::CreateToken {
                id,
                hash,
                cluster,
                ttl_ms,
            } => self.create_token(id, hash, cluster, ttl_ms),
            Command::RevokeToken { id } => self.revoke_token(id),
            Command::Join(join) => self.join(*join),
            Command::Renew { cluster, issued } => self.renew(&cluster, issued),
            Command::Leave { cluster } | Command::Evict { cluster } => self.remove_member(&cluster),
            Command::OpenPublish {
                cluster,
                held,
                description,
            } => self.open_publish(&cluster, held, description),
            Command::Upsert { epoch, export } => self.upsert(epoch, *export),
            Command::Delete { cluster, epoch, key } => self.delete(&cluster, epoch, &key),
            Command::Retain { cluster, epoch, keys } => self.retain(&cluster, epoch, &keys),
            Command::TrustAck {
                cluster,
                epoch,
                revision,
                lagging,
            } => self.acknowledge_trust(&cluster, epoch, revision, lagging),
            Command::LoseLease { cluster } => self.set_lease(&cluster, tombolo_clusterset::Lease::Lost),
            Command::RegainLease { cluster } => self.set_lease(&cluster, tombolo_clusterset::Lease::Alive),
            Command::SetGrant {
                key,
                exporter,
                importers,
            } => self.set_grant(key, exporter, importers),
            Command::Reserve { namespace, clusters } => self.reserve(namespace, clusters),
            Command::AddBroker { id, addresses } => self.add_broker(id, addresses),
            Command::RemoveBroker { id } => self.remove_broker(id),
            Command::Rotate { step, force } => self.rotate(step, force),
            Command::StartDrill { drill, force } => self.start_drill(*drill, force),
            Command::StopDrill { id } => self.stop_drill(id),
            Command::ReportDrill {
                cluster,
                drill,
                report,
            } => self.report_drill(&cluster, drill, report),
            Command::Tick => Ok(Reply::Done),
        }
    }

    fn found(
        &mut self,
        clusterset: Label,
        trust_domain: tombolo_trust::TrustDomain,
        root: crate::command::RootRecord,
        broker: u64,
        addresses: crate::command::BrokerAddresses,
    ) -> Verdict {
        if self.state.incarnation != 0 {
            return Err(Refusal::AlreadyFounded);
        }
        self.state.incarnation = 1;
        self.state.clusterset = Some(clusterset);
        self.state.trust = Some(Trust::new(trust_domain, root, self.index));
        self.state.brokers.active.insert(broker, addresses);
        self.changed.extend([EntryKey::Trust, EntryKey::Brokers]);
        Ok(Reply::Done)
    }

    /// What ends by itself on the replicated clock.
    fn expire(&mut self) {
        self.expire_tokens();
        self.expire_keys();
        self.expire_drill();
    }

    fn member(&mut self, cluster: &ClusterId) -> Result<&mut Member, Refusal> {
        self.state
            .members
            .get_mut(cluster)
            .ok_or_else(|| Refusal::NotAMember(cluster.clone()))
    }
}

impl State {
    /// When something ends by itself next, on the replicated clock: the leader then writes a [`Command::Tick`].
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let drill = self.drills.running.as_ref().map(|running| running.expires_ms);
        let denied = self
            .trust
            .iter()
            .flat_map(|trust| trust.denied.iter().map(|key| key.until_ms));
        let tokens = self.tokens.values().map(TokenRecord::forgotten_ms);
        drill.into_iter().chain(denied).chain(tokens).min()
    }

    /// Begins a new incarnation after a restore: tokens are void, no drill runs, every member must open its publish
    /// stream again, and no lease is known.
    ///
    /// `now` in seconds makes the incarnation unique: two restores of one back-up are two incarnations.
    pub fn begin_incarnation(&mut self, now: u64, broker: u64, addresses: crate::command::BrokerAddresses) {
        self.incarnation = now.max(self.incarnation + 1);
        self.tokens.clear();
        self.drills.running = None;
        // The group starts again with one broker; every other id is gone for good.
        self.brokers.restart(broker, addresses);
        // Epochs granted after the back-up are not known here; the incarnation, in seconds, is above them all.
        self.epoch_floor = self.epoch_floor.max(self.incarnation);
        for member in self.members.values_mut() {
            member.publish_epoch = (member.publish_epoch + 1).max(self.incarnation);
            member.view.lease = tombolo_clusterset::Lease::Unknown;
        }
    }
}
