//! The brokers of the group, as they should be; the leader brings Raft's membership in line with this.

use std::collections::{BTreeMap, BTreeSet};

use super::{Entry, EntryKey, Refusal, Verdict};
use crate::bounds::BROKERS_MAX;
use crate::command::{BrokerAddresses, Reply};

/// The brokers of the group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brokers {
    /// By id.
    pub active: BTreeMap<u64, BrokerAddresses>,
    /// Ids that were removed: never used again, since their disks may come back.
    pub retired: BTreeSet<u64>,
}

impl Brokers {
    /// After a restore: one broker, all others retired.
    pub(super) fn restart(&mut self, broker: u64, addresses: BrokerAddresses) {
        let gone = std::mem::take(&mut self.active);
        self.retired.extend(gone.into_keys());
        self.retired.remove(&broker);
        self.active.insert(broker, addresses);
    }
}

impl Entry<'_> {
    pub(super) fn add_broker(&mut self, id: u64, addresses: BrokerAddresses) -> Verdict {
        let brokers = &mut self.state.brokers;
        if id == 0 {
            return Err(Refusal::BrokerZero);
        }
        if brokers.retired.contains(&id) {
            return Err(Refusal::BrokerRetired(id));
        }
        match brokers.active.get(&id) {
            Some(known) if *known == addresses => return Ok(Reply::Done),
            Some(_) => return Err(Refusal::BrokerExists(id)),
            None => {}
        }
        if brokers.active.len() >= BROKERS_MAX {
            return Err(Refusal::TooManyBrokers);
        }
        for address in [addresses.api, addresses.peer] {
            let taken = brokers
                .active
                .iter()
                .find(|(_, other)| [other.api, other.peer].contains(&address));
            if let Some((&owner, _)) = taken {
                return Err(Refusal::BrokerAddressTaken {
                    address: address.to_string(),
                    owner,
                });
            }
        }
        brokers.active.insert(id, addresses);
        self.changed.insert(EntryKey::Brokers);
        Ok(Reply::Done)
    }

    pub(super) fn remove_broker(&mut self, id: u64) -> Verdict {
        let brokers = &mut self.state.brokers;
        if brokers.retired.contains(&id) {
            return Ok(Reply::Done);
        }
        if !brokers.active.contains_key(&id) {
            return Err(Refusal::BrokerUnknown(id));
        }
        if brokers.active.len() == 1 {
            return Err(Refusal::LastBroker(id));
        }
        brokers.active.remove(&id);
        brokers.retired.insert(id);
        self.changed.insert(EntryKey::Brokers);
        Ok(Reply::Done)
    }
}
