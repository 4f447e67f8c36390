//! Two signals, one verdict (DESIGN §4.3): the lease of a cluster at the broker and the direct link from here.

use std::time::Duration;

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

/// How long both signals must be lost before [`LossPolicy::Degrade`] withdraws: long enough that a broker failover together
/// with a gateway restart (each under 5 s) does not empty a service.
pub const WITHDRAW_GRACE: Duration = Duration::from_secs(10);

/// The verdict over one remote cluster, for a service with `policy`.
///
/// The own cluster is always [`Verdict::Use`] and is not asked here.
#[must_use]
pub fn verdict(lease: Lease, link: Link, policy: LossPolicy) -> Verdict {
    let link_lost = matches!(link.state, LinkState::Suspect | LinkState::Down);
    match (lease == Lease::Lost, link_lost, policy) {
        (false, false, _) => Verdict::Use,
        (true, _, LossPolicy::Withdraw) | (_, true, LossPolicy::Withdraw) => Verdict::Withdraw,
        // Lease lost, link up: keep. Nothing has been seen of the link: only the lease speaks, and it is no verdict alone.
        (true, false, _) if link.state == LinkState::Up => Verdict::Use,
        (true, true, LossPolicy::Degrade) if link.both_lost_for.is_some_and(|lost| lost >= WITHDRAW_GRACE) => {
            Verdict::Withdraw
        }
        (_, _, _) => Verdict::LastResort,
    }
}
