//! Members: joining, renewing, publishing epochs, leases, leaving.

use bytes::Bytes;
use tombolo_clusterset::{ClusterId, ClusterView, Lease};
use tombolo_trust::Fingerprint;

use super::tokens::millis;
use super::{Entry, EntryKey, Refusal, State, Verdict};
use crate::bounds::{CLOCK_SKEW_MAX, CLUSTERS_MAX, GATEWAYS_MAX, KEYS_MAX};
use crate::command::{Description, Issued, Join, Reply};

/// A key for which the root signed an intermediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuedKey {
    /// The intermediate's key.
    pub key: Fingerprint,
    /// The root that signed it.
    pub root: Fingerprint,
    /// When the intermediate ends by itself, milliseconds since the Unix epoch.
    pub not_after_ms: u64,
}

/// A member of the clusterset.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// What other members see.
    pub view: ClusterView,
    /// Log index of its join: another one is another membership.
    pub joined: u64,
    /// Newest trust bundle it has taken everywhere.
    pub trust_acked: u64,
    /// What still uses an old root there; empty when nothing does.
    pub lagging: String,
    /// The epoch of its publisher; older ones are refused.
    pub publish_epoch: u64,
    /// Log index of the last change that made some of its exports admissible or not: streams opened before it publish again.
    pub resync: u64,
    /// Keys that are valid now, the newest last.
    pub keys: Vec<IssuedKey>,
    /// The newest intermediate, DER.
    pub intermediate: Bytes,
}

/// Where a join stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may go on.
    Fresh,
    /// The same key joined with the same token before, and asks again because the answer got lost.
    Repeated {
        /// The certificate that was signed then, DER.
        certificate: Bytes,
    },
}

impl State {
    /// Whether a cluster may join now. A broker asks this before it writes anything, the state machine when it decides.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check_join(&self, join: &Join, now_ms: u64) -> Result<Admission, Refusal> {
        let (cluster, key) = (&join.cluster, join.issued.key);
        let token = self.check_token(join.token, &join.hash, cluster, key, now_ms)?;
        if token.used_by.is_some() {
            let member = self.members.get(cluster);
            let newest = member.filter(|member| member.keys.last().is_some_and(|last| last.key == key));
            let member = newest.ok_or_else(|| Refusal::TokenUsed(join.token.to_string()))?;
            return Ok(Admission::Repeated {
                certificate: member.intermediate.clone(),
            });
        }
        check_description(cluster, &join.description, now_ms)?;
        match self.members.get(cluster) {
            Some(_) if !join.replace => return Err(Refusal::DuplicateCluster(cluster.clone())),
            None if self.members.len() >= CLUSTERS_MAX => return Err(Refusal::TooManyClusters),
            _ => {}
        }
        self.check_key(key)?;
        Ok(Admission::Fresh)
    }

    fn check_key(&self, key: Fingerprint) -> Result<(), Refusal> {
        let denied = self
            .trust
            .iter()
            .flat_map(|trust| &trust.denied)
            .any(|denied| denied.key == key);
        if denied { Err(Refusal::KeyDenied) } else { Ok(()) }
    }
}

impl Entry<'_> {
    pub(super) fn join(&mut self, join: Join) -> Verdict {
        let admission = self.state.check_join(&join, self.state.clock_ms)?;
        let Join {
            token,
            cluster,
            description,
            issued,
            ..
        } = join;
        if let Admission::Repeated { certificate } = admission {
            return Ok(Reply::Issued { certificate });
        }
        let replaced = self.state.members.remove(&cluster);
        // One above the epoch of whoever it replaces: that one's stream is superseded at once.
        let publish_epoch = replaced
            .as_ref()
            .map_or(self.state.epoch_floor, |old| old.publish_epoch + 1);
        self.deny(&cluster, replaced.into_iter().flat_map(|old| old.keys));
        if let Some(token) = self.state.tokens.get_mut(&token) {
            token.used_by = Some(issued.key);
        }
        let member = Member {
            view: ClusterView {
                id: cluster.clone(),
                locality: description.locality,
                network: description.network,
                gateways: description.gateways,
                lease: Lease::Unknown,
            },
            joined: self.index,
            trust_acked: 0,
            lagging: String::new(),
            publish_epoch,
            resync: 0,
            keys: vec![IssuedKey {
                key: issued.key,
                root: issued.root,
                not_after_ms: issued.not_after_ms,
            }],
            intermediate: issued.certificate.clone(),
        };
        self.state.members.insert(cluster.clone(), member);
        self.changed.insert(EntryKey::Member(cluster.clone()));
        Ok(Reply::Issued {
            certificate: issued.certificate,
        })
    }

    pub(super) fn renew(&mut self, cluster: &ClusterId, issued: Issued) -> Verdict {
        self.state.check_key(issued.key)?;
        let member = self.member(cluster)?;
        member.keys.retain(|known| known.key != issued.key);
        if member.keys.len() >= KEYS_MAX {
            return Err(Refusal::TooManyKeys(cluster.clone()));
        }
        member.keys.push(IssuedKey {
            key: issued.key,
            root: issued.root,
            not_after_ms: issued.not_after_ms,
        });
        member.intermediate = issued.certificate.clone();
        Ok(Reply::Issued {
            certificate: issued.certificate,
        })
    }

    /// Leaving and being evicted end the same things: exports, grants of its own, lease, trust.
    pub(super) fn remove_member(&mut self, cluster: &ClusterId) -> Verdict {
        let member = self
            .state
            .members
            .remove(cluster)
            .ok_or_else(|| Refusal::NotAMember(cluster.clone()))?;
        // Above the last grant: a member of the same name begins where that one's streams no longer count.
        self.state.epoch_floor = self.state.epoch_floor.max(member.publish_epoch + 1);
        self.deny(cluster, member.keys);
        self.changed.insert(EntryKey::Member(cluster.clone()));
        let exports = self.remove_exports(|_, exporter| exporter == cluster);
        let own: Vec<_> = self
            .state
            .grants
            .by_export
            .keys()
            .filter(|(_, exporter)| exporter == cluster)
            .cloned()
            .collect();
        for grant in own {
            self.state.grants.by_export.remove(&grant);
            self.changed.insert(EntryKey::Grant(grant.0, grant.1));
        }
        Ok(Reply::Removed { exports })
    }

    pub(super) fn open_publish(
        &mut self,
        cluster: &ClusterId,
        held: u64,
        description: Description,
    ) -> Verdict {
        check_description(cluster, &description, self.state.clock_ms)?;
        if held != 0 {
            self.check_epoch(cluster, held)?;
        }
        let member = self.member(cluster)?;
        let epoch = if held == 0 { member.publish_epoch + 1 } else { held };
        let before = (member.view.clone(), member.publish_epoch);
        member.publish_epoch = epoch;
        member.view.locality = description.locality;
        member.view.network = description.network;
        member.view.gateways = description.gateways;
        member.view.lease = Lease::Alive;
        if before != (member.view.clone(), epoch) {
            self.changed.insert(EntryKey::Member(cluster.clone()));
        }
        Ok(Reply::Granted { epoch })
    }

    pub(super) fn set_lease(&mut self, cluster: &ClusterId, lease: Lease) -> Verdict {
        let member = self.member(cluster)?;
        if member.view.lease != lease {
            member.view.lease = lease;
            self.changed.insert(EntryKey::Member(cluster.clone()));
        }
        Ok(Reply::Done)
    }

    /// Whether `epoch` is the one that holds.
    pub(super) fn check_epoch(&mut self, cluster: &ClusterId, epoch: u64) -> Result<(), Refusal> {
        let current = self.member(cluster)?.publish_epoch;
        if epoch == current {
            Ok(())
        } else {
            Err(Refusal::Superseded {
                cluster: cluster.clone(),
                held: epoch,
                current,
            })
        }
    }

    /// Intermediates that ended by themselves need no memory, once they have ended on the slowest clock that is allowed.
    pub(super) fn expire_keys(&mut self) {
        let now = self.state.clock_ms;
        for member in self.state.members.values_mut() {
            member
                .keys
                .retain(|key| key.not_after_ms.saturating_add(millis(CLOCK_SKEW_MAX)) > now);
        }
        let Some(trust) = &mut self.state.trust else {
            return;
        };
        let before = trust.denied.len();
        trust.denied.retain(|denied| denied.until_ms > now);
        if trust.denied.len() != before {
            trust.revision = self.index;
            self.changed.insert(EntryKey::Trust);
        }
    }
}

fn check_description(cluster: &ClusterId, description: &Description, now_ms: u64) -> Result<(), Refusal> {
    if description.gateways.len() > GATEWAYS_MAX {
        return Err(Refusal::TooManyGateways(
            cluster.clone(),
            description.gateways.len(),
        ));
    }
    let (theirs, ours) = (description.unix_ms, now_ms);
    if theirs.abs_diff(ours) > millis(CLOCK_SKEW_MAX) {
        let direction = if theirs > ours { "ahead of" } else { "behind" };
        return Err(Refusal::ClockSkew {
            cluster: cluster.clone(),
            seconds: theirs.abs_diff(ours) / 1000,
            direction,
        });
    }
    Ok(())
}
