//! Readiness: a process is ready when nothing that it named blocks it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// All blockers of a process, cheap to clone. Without any it is ready, so take every blocker before serving starts.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    blockers: Arc<watch::Sender<Blockers>>,
}

#[derive(Debug, Default)]
struct Blockers {
    next: u64,
    /// By order of creation: what starts first is listed first.
    states: BTreeMap<u64, (Cow<'static, str>, BlockerState)>,
}

/// What one blocker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockerState {
    /// Not ready yet.
    Waiting,
    /// Blocks no more.
    Ready,
    /// Was ready, or tried to be, and is not now.
    NotReady {
        /// What is wrong, for a person.
        reason: String,
    },
    /// Its owner is gone without having become ready: it never will be.
    Failed,
}

/// A blocker was dropped before it became ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("never becomes ready: {} gave up; see its errors above in the log", .names.join(", "))]
pub struct NeverReady {
    /// The blockers that failed.
    pub names: Vec<String>,
}

impl Readiness {
    /// Nothing blocks.
    pub fn new() -> Readiness {
        Readiness::default()
    }

    /// Adds a reason not to be ready, until its [`Blocker`] says otherwise.
    pub fn block(&self, name: impl Into<Cow<'static, str>>) -> Blocker {
        let mut id = 0;
        self.blockers.send_modify(|blockers| {
            id = blockers.next;
            blockers.next += 1;
            blockers.states.insert(id, (name.into(), BlockerState::Waiting));
        });
        Blocker {
            id,
            blockers: self.blockers.clone(),
        }
    }

    /// Every blocker, ready or not, in order of creation.
    pub fn report(&self) -> Vec<(String, BlockerState)> {
        self.blockers
            .borrow()
            .states
            .values()
            .map(|(name, state)| (name.to_string(), state.clone()))
            .collect()
    }

    /// Whether every blocker is ready.
    pub fn is_ready(&self) -> bool {
        self.blockers.borrow().all_ready()
    }

    /// Waits until every blocker is ready; an error as soon as one has failed.
    pub async fn wait_ready(&self) -> Result<(), NeverReady> {
        let mut updates = self.blockers.subscribe();
        loop {
            {
                let blockers = updates.borrow_and_update();
                let names = blockers.failed();
                if !names.is_empty() {
                    return Err(NeverReady { names });
                }
                if blockers.all_ready() {
                    return Ok(());
                }
            }
            // `self` holds the sender, so this only fails when nobody is left to wait.
            if updates.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

impl Blockers {
    fn all_ready(&self) -> bool {
        self.states
            .values()
            .all(|(_, state)| *state == BlockerState::Ready)
    }

    fn failed(&self) -> Vec<String> {
        let failed = self
            .states
            .values()
            .filter(|(_, state)| *state == BlockerState::Failed);
        failed.map(|(name, _)| name.to_string()).collect()
    }
}

/// One reason not to be ready. Dropped while ready it stays ready; dropped before that, it has failed.
#[derive(Debug)]
#[must_use = "a dropped blocker has failed"]
pub struct Blocker {
    id: u64,
    blockers: Arc<watch::Sender<Blockers>>,
}

impl Blocker {
    /// Blocks no more.
    pub fn mark_ready(&self) {
        self.set(|_| BlockerState::Ready);
    }

    /// Blocks again; `reason` is for a person.
    pub fn mark_unready(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.set(|_| BlockerState::NotReady { reason });
    }

    /// Tells the others only of a change.
    fn set(&self, next: impl FnOnce(&BlockerState) -> BlockerState) {
        self.blockers.send_if_modified(|blockers| {
            let Some((name, state)) = blockers.states.get_mut(&self.id) else {
                return false;
            };
            let next = next(state);
            let changed = *state != next;
            if changed {
                tracing::info!(blocker = %name, state = ?next, "readiness changed");
                *state = next;
            }
            changed
        });
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.set(|state| match state {
            BlockerState::Ready => BlockerState::Ready,
            BlockerState::Waiting | BlockerState::NotReady { .. } | BlockerState::Failed => {
                BlockerState::Failed
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Act {
        Ready,
        Unready,
        Drop,
    }

    fn check(acts: &[Act], expected: BlockerState) {
        let readiness = Readiness::new();
        let mut blocker = Some(readiness.block("broker-watch"));
        for act in acts {
            match (act, &blocker) {
                (Act::Ready, Some(blocker)) => blocker.mark_ready(),
                (Act::Unready, Some(blocker)) => blocker.mark_unready("lost it"),
                (Act::Drop, _) => blocker = None,
                (_, None) => panic!("the blocker is gone"),
            }
        }
        assert_eq!(
            readiness.report(),
            [("broker-watch".to_owned(), expected.clone())]
        );
        assert_eq!(readiness.is_ready(), expected == BlockerState::Ready);
    }

    #[test]
    fn a_blocker_lives_by_the_rules() {
        let lost = BlockerState::NotReady {
            reason: "lost it".to_owned(),
        };
        check(&[], BlockerState::Waiting);
        check(&[Act::Ready], BlockerState::Ready);
        check(&[Act::Ready, Act::Unready], lost.clone());
        check(&[Act::Unready], lost);
        check(&[Act::Ready, Act::Unready, Act::Ready], BlockerState::Ready);
        check(&[Act::Drop], BlockerState::Failed);
        check(&[Act::Ready, Act::Drop], BlockerState::Ready);
        check(&[Act::Ready, Act::Unready, Act::Drop], BlockerState::Failed);
    }

    #[tokio::test]
    async fn waiting_ends_when_the_last_blocker_is_ready() {
        let readiness = Readiness::new();
        let blockers = [readiness.block("snapshot"), readiness.block("listener")];
        let (waited, ()) = tokio::join!(readiness.wait_ready(), async {
            blockers[0].mark_ready();
            tokio::task::yield_now().await;
            blockers[1].mark_ready();
        });
        assert_eq!(waited, Ok(()));
    }

    #[tokio::test]
    async fn waiting_fails_when_a_blocker_gave_up() {
        let readiness = Readiness::new();
        let _listener = readiness.block("listener");
        let snapshot = readiness.block("snapshot");
        let (waited, ()) = tokio::join!(readiness.wait_ready(), async { drop(snapshot) });
        assert_eq!(
            waited,
            Err(NeverReady {
                names: vec!["snapshot".to_owned()]
            })
        );
    }

    #[tokio::test]
    async fn nothing_to_wait_for_is_ready() {
        assert_eq!(Readiness::new().wait_ready().await, Ok(()));
    }
}
