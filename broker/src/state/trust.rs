//! Roots, their staged rotation, and denied keys.

use tombolo_clusterset::ClusterId;
use tombolo_trust::{Fingerprint, TrustDomain};

use super::members::IssuedKey;
use super::tokens::millis;
use super::{Entry, EntryKey, Refusal, State, Verdict};
use crate::bounds::{CLOCK_SKEW_MAX, LAGGING_MAX_BYTES};
use crate::command::{Reply, RootRecord, RotationStep};

/// Where the rotation of the root stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// One root.
    Steady,
    /// Two roots are trusted, the old one signs.
    Staged(RootRecord),
    /// Two roots are trusted, the new one signs. Holds the old one.
    Switched(RootRecord),
}

impl Stage {
    /// The word of `tombolo ca status`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Staged(_) => "staged",
            Self::Switched(_) => "switched",
        }
    }
}

/// An intermediate's key that no verifier accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedKey {
    /// Which.
    pub key: Fingerprint,
    /// Whose it was.
    pub cluster: ClusterId,
    /// When its intermediate has ended by itself on every clock and this entry with it, milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// What the clusterset trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Fixed at the founding, untouched by rotation.
    pub trust_domain: TrustDomain,
    /// The root that signs.
    pub signing: RootRecord,
    /// Whether there is another.
    pub stage: Stage,
    /// Of clusters that were evicted, left, or were replaced.
    pub denied: Vec<DeniedKey>,
    /// Log index of the last change.
    pub revision: u64,
    /// Log index of the rotation's last step; members must have acknowledged it before the next.
    pub stepped: u64,
}

impl Trust {
    pub(super) fn new(trust_domain: TrustDomain, root: RootRecord, index: u64) -> Self {
        Self {
            trust_domain,
            signing: root,
            stage: Stage::Steady,
            denied: Vec::new(),
            revision: index,
            stepped: index,
        }
    }

    /// Every trusted root, in the order of their staging.
    #[must_use]
    pub fn roots(&self) -> Vec<&RootRecord> {
        match &self.stage {
            Stage::Steady => vec![&self.signing],
            Stage::Staged(new) => vec![&self.signing, new],
            Stage::Switched(old) => vec![old, &self.signing],
        }
    }
}

impl State {
    /// Members that keep the rotation from its next step, each with the reason.
    #[must_use]
    pub fn lagging(&self) -> Vec<(ClusterId, String)> {
        let Some(trust) = &self.trust else {
            return Vec::new();
        };
        let reason = |member: &super::Member| match &trust.stage {
            Stage::Steady => None,
            _ if member.trust_acked < trust.stepped => Some(format!(
                "has acknowledged trust revision {} of {}",
                member.trust_acked, trust.stepped
            )),
            Stage::Staged(_) => None,
            Stage::Switched(old) => {
                // Chains of the old root end with their intermediate, so the newest one decides.
                let on_old = member.keys.last().is_some_and(|key| key.root == old.key);
                let in_use = (!member.lagging.is_empty()).then(|| member.lagging.clone());
                if on_old {
                    Some("has an intermediate of the old root".to_owned())
                } else {
                    in_use
                }
            }
        };
        self.members
            .iter()
            .filter_map(|(id, member)| Some((id.clone(), reason(member)?)))
            .collect()
    }
}

impl Entry<'_> {
    pub(super) fn acknowledge_trust(
        &mut self,
        cluster: &ClusterId,
        epoch: u64,
        revision: u64,
        lagging: String,
    ) -> Verdict {
        self.check_epoch(cluster, epoch)?;
        let newest = self.state.trust.as_ref().map_or(0, |trust| trust.revision);
        if revision > newest {
            return Err(Refusal::TrustFromTheFuture {
                cluster: cluster.clone(),
                acked: revision,
                newest,
            });
        }
        let member = self.member(cluster)?;
        let lagging = bounded_lagging(&lagging).to_owned();
        if member.trust_acked != revision || member.lagging != lagging {
            member.trust_acked = revision;
            member.lagging = lagging;
            self.changed.insert(EntryKey::Member(cluster.clone()));
        }
        Ok(Reply::Done)
    }

    pub(super) fn rotate(&mut self, step: RotationStep, force: bool) -> Verdict {
        let lagging = self.state.lagging();
        let index = self.index;
        let Some(trust) = &mut self.state.trust else {
            return Err(Refusal::NotFounded);
        };
        let wrong = |asked, next| {
            Err(Refusal::RotationStep {
                asked,
                stage: trust.stage.as_str(),
                next,
            })
        };
        let next = match (&trust.stage, step) {
            (Stage::Steady, RotationStep::Stage(new)) => Stage::Staged(new),
            (Stage::Staged(new), RotationStep::Switch) => {
                check_lagging("switched", &lagging, force)?;
                let old = std::mem::replace(&mut trust.signing, new.clone());
                Stage::Switched(old)
            }
            (Stage::Switched(_), RotationStep::Drop) => {
                check_lagging("dropped", &lagging, force)?;
                Stage::Steady
            }
            (_, RotationStep::Stage(_)) => return wrong("staged", "finish that rotation first"),
            (Stage::Steady, RotationStep::Switch) => return wrong("switched", "stage a new root first"),
            (Stage::Switched(_), RotationStep::Switch) => return wrong("switched", "drop the old root next"),
            (Stage::Steady, RotationStep::Drop) => return wrong("dropped", "there is only one root"),
            (Stage::Staged(_), RotationStep::Drop) => {
                return wrong("dropped", "switch to the new root first");
            }
        };
        trust.stage = next;
        trust.revision = index;
        trust.stepped = index;
        self.changed.insert(EntryKey::Trust);
        Ok(Reply::Done)
    }

    /// Denies keys until their intermediates end by themselves, on the slowest clock that is allowed.
    pub(super) fn deny(&mut self, cluster: &ClusterId, keys: impl IntoIterator<Item = IssuedKey>) {
        let now = self.state.clock_ms;
        let Some(trust) = &mut self.state.trust else {
            return;
        };
        for key in keys {
            let until_ms = key.not_after_ms.saturating_add(millis(CLOCK_SKEW_MAX));
            if until_ms <= now {
                continue;
            }
            trust.denied.push(DeniedKey {
                key: key.key,
                cluster: cluster.clone(),
                until_ms,
            });
            trust.revision = self.index;
            self.changed.insert(EntryKey::Trust);
        }
    }
}

/// As much of a member's words as is kept. A broker cuts them before it writes anything, too.
#[must_use]
pub fn bounded_lagging(lagging: &str) -> &str {
    let end = lagging.floor_char_boundary(LAGGING_MAX_BYTES);
    lagging.get(..end).unwrap_or_default()
}

fn check_lagging(asked: &'static str, lagging: &[(ClusterId, String)], force: bool) -> Result<(), Refusal> {
    if force || lagging.is_empty() {
        return Ok(());
    }
    let lagging = lagging
        .iter()
        .map(|(cluster, why)| format!("{cluster} {why}"))
        .collect::<Vec<_>>()
        .join(", ");
    Err(Refusal::RotationLags { asked, lagging })
}
