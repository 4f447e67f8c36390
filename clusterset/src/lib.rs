//! The rules of a clusterset, as plain functions over plain data.
//!
//! Nothing in this crate reads a clock, draws entropy, opens a socket or spawns: `now` and `rng` are arguments. What every
//! cluster must agree on ([`merge`]) and what each decides for itself ([`reachability`], [`select`], [`health`]) stand side
//! by side here, so that the agent, the gateway, the DNS server, the sidecar, `explain` and the simulation all run the same
//! code.
//!
//! The way of a new flow: [`link`] turns pings into a state and [`health`] outcomes into ejections; [`reachability`] joins
//! link and lease into a verdict; [`select`] orders what [`snapshot`] holds; at the other end [`local`] picks the endpoint.
//! [`explain`] tells all of it, and [`drill`] proves it.
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "a test's time must start somewhere")
)]

pub mod affinity;
pub mod conditions;
pub mod dispatch;
pub mod drill;
pub mod endpoint;
pub mod explain;
pub mod export;
#[cfg(test)]
mod fixtures;
pub mod health;
pub mod link;
pub mod local;
pub mod locality;
pub mod merge;
pub mod name;
pub mod places;
pub mod policy;
pub mod reachability;
pub mod select;
pub mod snapshot;

pub use drill::{Drill, DrillId, DrillKind};
pub use endpoint::{Endpoint, EndpointSlice, Readiness, SlicePort};
pub use export::{Export, ExportRecord, ServicePort, ServiceSpec, ServiceType};
pub use link::{LinkProfile, LinkTracker};
pub use locality::Locality;
pub use name::{ClusterId, Label, NameError, Namespace, ServiceKey, ServiceName};
pub use policy::{ExportGrant, LossPolicy};
pub use reachability::{Lease, Link, LinkState, Verdict};
pub use snapshot::{ClusterView, Import, ImportedCluster, Snapshot, Version};
