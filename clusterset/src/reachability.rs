//! Two signals, one verdict (DESIGN §4.3): the lease of a cluster at the broker and the direct link from here.
//!
//! [`link`](crate::link) turns pings into the link's state, [`BothLost`] measures the grace, [`verdict`] joins the two.

use std::time::{Duration, Instant};

use crate::policy::LossPolicy;

/// A cluster's proof of life at the broker, as this cluster knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lease {
    /// Renewed in time.
    Alive,
    /// Lost by a committed entry, seen on a stream that is fresh from a quorum.
    Lost,
    /// The broker cannot be asked: says nothing about the cluster.
    #[default]
    Unknown,
}

impl Lease {
    /// The word of `status` and `explain`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

/// State of a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkState {
    /// Answers in time.
    Up,
    /// Answers are overdue: new flows go elsewhere.
    Suspect,
    /// Gone: old flows are reset.
    Down,
    /// No gateway has tried yet, or none reports.
    #[default]
    Unknown,
}

impl LinkState {
    /// The word of `status` and `explain`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

/// The path from this cluster to another: the best over all their gateways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Its state.
    pub state: LinkState,
    /// Smoothed round trip time; None until measured.
    pub rtt: Option<Duration>,
    /// For how long both this link and the lease have been lost; None when they are not.
    pub both_lost_for: Option<Duration>,
}

/// What to do with the endpoints of a remote cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Use them in their order.
    Use,
    /// Use them only when nothing better is left.
    LastResort,
    /// Do not use them, and do not answer with them.
    Withdraw,
}

impl Verdict {
    /// The word of `status` and `explain`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Use => "use",
            Self::LastResort => "last resort",
            Self::Withdraw => "withdrawn",
        }
    }
}

/// How long both signals must be lost before [`LossPolicy::Degrade`] withdraws: long enough that a broker failover together
/// with a gateway restart (each under 5 s) does not empty a service.
pub const WITHDRAW_GRACE: Duration = Duration::from_secs(10);

/// The verdict over one remote cluster, for a service with `policy`.
///
/// ```text
///                lease alive or unknown         lease lost
/// link up        use                            use
/// link unknown   use                            last resort: one signal, and the other says nothing
/// link suspect   last resort                    last resort
/// link down      last resort                    last resort; withdraw once both were lost for WITHDRAW_GRACE
/// ```
/// That is `degrade`. Under `keep` nothing is withdrawn; under `withdraw` the cluster is withdrawn as soon as the lease is
/// lost or the link is down. A suspect link is doubt, not loss: it diverts new flows and withdraws nothing.
///
/// The own cluster is always [`Verdict::Use`] and is not asked here.
#[must_use]
pub fn verdict(lease: Lease, link: Link, policy: LossPolicy) -> Verdict {
    let lease_lost = lease == Lease::Lost;
    let link_lost = link.state == LinkState::Down;
    let grace_over = link.both_lost_for.is_some_and(|lost| lost >= WITHDRAW_GRACE);
    match policy {
        LossPolicy::Withdraw if lease_lost || link_lost => return Verdict::Withdraw,
        LossPolicy::Degrade if lease_lost && link_lost && grace_over => return Verdict::Withdraw,
        LossPolicy::Keep | LossPolicy::Degrade | LossPolicy::Withdraw => {}
    }
    match (link.state, lease) {
        (LinkState::Up, _) | (LinkState::Unknown, Lease::Alive | Lease::Unknown) => Verdict::Use,
        (LinkState::Unknown, Lease::Lost) | (LinkState::Suspect | LinkState::Down, _) => Verdict::LastResort,
    }
}

/// The link to a cluster from the paths to its gateways: the best one speaks for all. Up before Suspect before Down; a path
/// that nobody has tried says nothing while another speaks. Of several up paths the fastest.
#[must_use]
pub fn best(paths: impl IntoIterator<Item = Link>) -> Link {
    let order = |link: &Link| {
        let state = match link.state {
            LinkState::Up => 0,
            LinkState::Suspect => 1,
            LinkState::Down => 2,
            LinkState::Unknown => 3,
        };
        (state, link.rtt.is_none(), link.rtt)
    };
    paths.into_iter().min_by_key(order).unwrap_or_default()
}

/// For how long the lease of a cluster and the link to it have both been lost.
///
/// The clock starts when both are lost, and only a sign of life ends it: a lease that becomes *unknown* (the broker cannot be
/// asked) neither counts nor resets, so that a broker's failover does not give a dead cluster its grace anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BothLost {
    since: Option<Instant>,
}

impl BothLost {
    /// Takes in the two signals as they stand at `now`; the answer belongs into [`Link::both_lost_for`].
    pub fn update(&mut self, lease: Lease, link: LinkState, now: Instant) -> Option<Duration> {
        match (lease, link) {
            (Lease::Lost, LinkState::Down) => {
                let since = *self.since.get_or_insert(now);
                Some(now.saturating_duration_since(since))
            }
            (Lease::Unknown, LinkState::Down) => None,
            _ => {
                self.since = None;
                None
            }
        }
    }

    /// When [`LossPolicy::Degrade`] withdraws, should nothing change before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + WITHDRAW_GRACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Lease::{Alive, Lost};
    use LinkState::{Down, Suspect, Up};
    use LossPolicy::{Degrade, Keep, Withdraw};

    const LEASES: [Lease; 3] = [Alive, Lease::Unknown, Lost];
    const STATES: [LinkState; 4] = [Up, LinkState::Unknown, Suspect, Down];
    const POLICIES: [LossPolicy; 3] = [Keep, Degrade, Withdraw];
    const LONG: Option<Duration> = Some(WITHDRAW_GRACE);
    const SHORT: Option<Duration> = Some(Duration::from_millis(9_999));

    fn of(lease: Lease, state: LinkState, both_lost_for: Option<Duration>, policy: LossPolicy) -> Verdict {
        verdict(
            lease,
            Link {
                state,
                rtt: None,
                both_lost_for,
            },
            policy,
        )
    }

    #[test]
    fn the_table_of_two_signals() {
        use Verdict::{LastResort as L, Use as U, Withdraw as W};
        let table = [
            // lease, link, both lost for, [keep, degrade, withdraw]
            (Alive, Up, None, [U, U, U]),
            (Alive, LinkState::Unknown, None, [U, U, U]),
            (Alive, Suspect, None, [L, L, L]),
            (Alive, Down, None, [L, L, W]),
            (Lease::Unknown, Up, None, [U, U, U]),
            (Lease::Unknown, LinkState::Unknown, None, [U, U, U]),
            (Lease::Unknown, Suspect, None, [L, L, L]),
            (Lease::Unknown, Down, None, [L, L, W]),
            (Lease::Unknown, Down, LONG, [L, L, W]),
            (Lost, Up, None, [U, U, W]),
            (Lost, LinkState::Unknown, None, [L, L, W]),
            (Lost, Suspect, None, [L, L, W]),
            (Lost, Down, None, [L, L, W]),
            (Lost, Down, SHORT, [L, L, W]),
            (Lost, Down, LONG, [L, W, W]),
        ];
        for (lease, link, lost, expected) in table {
            for (policy, expected) in POLICIES.into_iter().zip(expected) {
                assert_eq!(
                    of(lease, link, lost, policy),
                    expected,
                    "{lease:?} {link:?} {lost:?} {policy:?}"
                );
            }
        }
    }

    #[test]
    fn a_worse_signal_never_gives_a_better_verdict() {
        let losses = [None, SHORT, LONG];
        for (a, lease) in LEASES.into_iter().enumerate() {
            for (b, state) in STATES.into_iter().enumerate() {
                for (c, lost) in losses.into_iter().enumerate() {
                    for (d, policy) in POLICIES.into_iter().enumerate() {
                        let worse = LEASES[a..]
                            .iter()
                            .flat_map(|lease| STATES[b..].iter().map(move |s| (lease, s)));
                        for (worse_lease, worse_state) in worse {
                            for (lost_longer, stricter) in losses[c..]
                                .iter()
                                .flat_map(|l| POLICIES[d..].iter().map(move |p| (l, p)))
                            {
                                assert!(
                                    of(lease, state, lost, policy)
                                        <= of(*worse_lease, *worse_state, *lost_longer, *stricter),
                                    "{lease:?} {state:?} {lost:?} {policy:?} is worse than \
                                     {worse_lease:?} {worse_state:?} {lost_longer:?} {stricter:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn grace_runs_while_both_are_lost_and_survives_a_brokers_failover() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut both = BothLost::default();
        assert_eq!(both.update(Lost, Up, at(0)), None);
        assert_eq!(both.deadline(), None);
        assert_eq!(both.update(Lost, Down, at(1)), Some(Duration::ZERO));
        assert_eq!(both.deadline(), Some(at(1) + WITHDRAW_GRACE));
        assert_eq!(both.update(Lease::Unknown, Down, at(5)), None);
        assert_eq!(both.update(Lost, Down, at(12)), Some(Duration::from_secs(11)));
        assert_eq!(both.update(Lost, Suspect, at(13)), None);
        assert_eq!(both.update(Lost, Down, at(14)), Some(Duration::ZERO));
        assert_eq!(both.update(Alive, Down, at(15)), None);
        assert_eq!(both.deadline(), None);
    }

    #[test]
    fn the_best_path_speaks_for_the_cluster() {
        let path = |state, ms: u64| Link {
            state,
            rtt: Some(Duration::from_millis(ms)),
            both_lost_for: None,
        };
        assert_eq!(
            best([path(Down, 1), path(Up, 30), path(Up, 20), path(Suspect, 5)]),
            path(Up, 20)
        );
        assert_eq!(best([path(Down, 1), Link::default()]), path(Down, 1));
        assert_eq!(best([]), Link::default());
    }
}
