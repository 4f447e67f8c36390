//! Bugs that the harness can put in on purpose, to show that the invariants find them.
//!
//! Each is one branch in the harness's own code, where it stands for a shell: no product code knows of them.

/// One bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A broker's disk says "written" before anything is, so that a crash forgets what was acknowledged.
    SkippedSync,
    /// An agent ranks exports by their arrival instead of their admission.
    MergeByArrival,
    /// The leader never ends a lease.
    ImmortalLease,
    /// A broker tells watchers of a lost lease before the entry is committed.
    HastyLease,
    /// An agent uses addresses that it did not store.
    ForgottenVips,
    /// A gateway swaps in the snapshot before the newest.
    StaleSwap,
    /// The DNS server keeps its zone when only verdicts change.
    DeafZone,
    /// A gateway admits whatever it exports, whoever asks.
    OpenGate,
    /// Neither the broker nor the clusters end a drill.
    EndlessDrill,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SkippedSync,
        Self::MergeByArrival,
        Self::ImmortalLease,
        Self::HastyLease,
        Self::ForgottenVips,
        Self::StaleSwap,
        Self::DeafZone,
        Self::OpenGate,
        Self::EndlessDrill,
    ];
}
