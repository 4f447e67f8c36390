//! The gRPC services. Who is at the other end decides which may be called: without a certificate only
//! `Membership.Join`; a cluster's agent joins the rest of Membership and Sync; operators have Operator; brokers Peer.

mod membership;
mod operator;
mod peer;
mod publish;
mod sync;
mod watch;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tombolo_clusterset::{ClusterId, Label, Locality};
use tombolo_daemon::{Seams, Shutdown};
use tombolo_trust::{Role, SpiffeId, Subject};
use tombolo_wire::convert::Invalid;
use tombolo_wire::v1;
use tombolo_wire::version::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, negotiate};
use tonic::{Request, Status};

pub use membership::MembershipService;
pub use operator::OperatorService;
pub use peer::PeerService;
pub use sync::SyncService;

use super::authority::{Authority, AuthorityError, unix_ms};
use super::listen::Caller;
use super::metrics::Metrics;
use super::raft::batcher::Decided;
use super::raft::group::{Group, GroupError};
use super::renewals::{Leases, Renewals};
use crate::bounds::{PUBLISHERS_MAX, WATCHERS_MAX};
use crate::command::{Command, Description, Reply};
use crate::state::{Class, State, Trust};
use crate::stored::Outcome;

/// What every service needs.
#[derive(Debug)]
pub struct Broker {
    /// The group.
    pub group: Arc<Group>,
    /// The certificate authority.
    pub authority: Arc<Authority>,
    /// Lease table, while this broker leads.
    pub leases: Arc<Leases>,
    /// Where signs of life go.
    pub renewals: Renewals,
    /// Time.
    pub seams: Seams,
    /// Streams end when the drain begins.
    pub shutdown: Shutdown,
    /// What is counted.
    pub metrics: Metrics,
    watchers: Arc<Semaphore>,
    publishers: Arc<Semaphore>,
}

impl Broker {
    /// Ties the parts together.
    #[must_use]
    pub fn new(
        group: Arc<Group>,
        authority: Arc<Authority>,
        leases: Arc<Leases>,
        renewals: Renewals,
        seams: Seams,
        shutdown: Shutdown,
        metrics: Metrics,
    ) -> Self {
        let (watchers, publishers) = (Semaphore::new(WATCHERS_MAX), Semaphore::new(PUBLISHERS_MAX));
        Self {
            group,
            authority,
            leases,
            renewals,
            seams,
            shutdown,
            metrics,
            watchers: Arc::new(watchers),
            publishers: Arc::new(publishers),
        }
    }

    /// Wall clock, milliseconds since the Unix epoch.
    fn unix_ms(&self) -> u64 {
        unix_ms(self.seams.clock.wall())
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.group.replica().read(read)
    }

    /// The trust of the clusterset.
    fn trust(&self) -> Result<Trust, Status> {
        self.read(|state| state.trust.clone()).ok_or_else(|| {
            Status::unavailable(
                "the clusterset is not founded yet; wait until the bootstrapping broker is ready",
            )
        })
    }

    /// Proposes, and gives the reply with its log index, or the refusal as a status.
    async fn decide(&self, command: Command) -> Result<(Reply, u64), Status> {
        let Decided { mut outcomes, index } =
            self.group.propose(vec![command]).await.map_err(group_status)?;
        match outcomes.pop() {
            Some(Outcome::Done(reply)) => Ok((reply, index)),
            Some(Outcome::Refused { class, message }) => Err(refused(class, message)),
            None => Err(Status::internal(
                "the leader answered nothing; upgrade the older broker",
            )),
        }
    }

    /// Proposes what has no reply of its own.
    async fn commit(&self, command: Command) -> Result<v1::Committed, Status> {
        Ok(v1::Committed {
            log_index: self.decide(command).await?.1,
        })
    }
}

/// A refusal as gRPC says it.
fn refused(class: Class, message: String) -> Status {
    match class {
        Class::Invalid => Status::invalid_argument(message),
        Class::Unauthenticated => Status::unauthenticated(message),
        Class::Denied => Status::permission_denied(message),
        Class::NotFound => Status::not_found(message),
        Class::Exists => Status::already_exists(message),
        Class::Precondition => Status::failed_precondition(message),
        Class::Exhausted => Status::resource_exhausted(message),
    }
}

fn group_status(error: GroupError) -> Status {
    match error {
        GroupError::Unanswered | GroupError::Unknown(_) => Status::unavailable(error.to_string()),
        GroupError::TooLarge(_) => Status::invalid_argument(error.to_string()),
        GroupError::Overloaded => Status::resource_exhausted(error.to_string()),
    }
}

fn authority_status(error: AuthorityError) -> Status {
    match error {
        AuthorityError::Issue(error) => Status::invalid_argument(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}

fn invalid(error: Invalid) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Who calls, whatever the service.
fn caller<T>(request: &Request<T>) -> Option<SpiffeId> {
    request
        .extensions()
        .get::<Caller>()
        .and_then(|caller| caller.id.clone())
}

/// Whether the caller's intermediate still counts: verifiers learn of a denial a moment later, and never ask again on a
/// connection that is up. A chain may hold more than its path and in any order, so one denied key in it is enough.
fn check_signer<T>(broker: &Broker, request: &Request<T>) -> Result<(), Status> {
    let signers = request
        .extensions()
        .get::<Caller>()
        .map(|caller| caller.signers.as_ref())
        .unwrap_or_default();
    let is_denied = broker.read(|state| {
        let denied = state.trust.iter().flat_map(|trust| &trust.denied);
        denied.into_iter().any(|denied| signers.contains(&denied.key))
    });
    if is_denied {
        return Err(Status::permission_denied(
            "the intermediate of this certificate is denied: its cluster left, was evicted or was replaced; join with a new token",
        ));
    }
    Ok(())
}

/// The cluster whose agent calls.
fn agent<T>(broker: &Broker, request: &Request<T>) -> Result<ClusterId, Status> {
    let id = caller(request).ok_or_else(unauthenticated)?;
    check_signer(broker, request)?;
    match id.subject() {
        Subject::Role {
            cluster,
            role: Role::Agent,
        } => Ok(cluster.clone()),
        _ => Err(denied(&id, "a cluster's agent")),
    }
}

/// An operator's name.
fn operator<T>(request: &Request<T>) -> Result<String, Status> {
    let id = caller(request).ok_or_else(unauthenticated)?;
    match id.subject() {
        Subject::Operator(name) => Ok(name.to_string()),
        _ => Err(denied(&id, "an operator")),
    }
}

fn unauthenticated() -> Status {
    Status::unauthenticated(
        "this call needs a client certificate; without one only Membership.Join is answered",
    )
}

fn denied(id: &SpiffeId, wanted: &str) -> Status {
    Status::permission_denied(format!("{id} may not call this; it is for {wanted}"))
}

fn check_version(version: u32) -> Result<(), Status> {
    // A caller names the version that it speaks; what it can fall back to, it decides itself.
    negotiate(version.min(PROTOCOL_VERSION), version.max(PROTOCOL_VERSION_MIN))
        .map(drop)
        .map_err(|error| Status::failed_precondition(error.to_string()))
}

/// How a member describes itself, checked.
fn description(
    locality: Option<&v1::Locality>,
    network: &str,
    gateways: &[String],
    unix_ms: u64,
) -> Result<Description, Status> {
    let locality = locality
        .map(Locality::try_from)
        .transpose()
        .map_err(invalid)?
        .unwrap_or_default();
    let network =
        Label::parse(network).map_err(|error| Status::invalid_argument(format!("field network: {error}")))?;
    let parse = |gateway: &String| {
        let wrong = || Status::invalid_argument(format!("field gateways: '{gateway}' is no IP:PORT"));
        gateway.parse().map_err(|_| wrong())
    };
    let gateways = gateways.iter().map(parse).collect::<Result<_, _>>()?;
    Ok(Description {
        locality,
        network,
        gateways,
        unix_ms,
    })
}

fn cluster_id(field: &str, text: &str) -> Result<ClusterId, Status> {
    tombolo_wire::convert::cluster_id(field, text).map_err(invalid)
}

/// The trust bundle as members get it.
fn bundle(trust: &Trust) -> v1::TrustBundle {
    v1::TrustBundle {
        trust_domain: trust.trust_domain.to_string(),
        roots: trust
            .roots()
            .iter()
            .map(|root| root.certificate.clone())
            .collect(),
        denied: trust
            .denied
            .iter()
            .map(|denied| bytes::Bytes::copy_from_slice(denied.key.as_bytes()))
            .collect(),
        revision: trust.revision,
    }
}

/// API addresses of the group.
fn broker_addresses(state: &State) -> Vec<String> {
    state
        .brokers
        .active
        .values()
        .map(|addresses| addresses.api.to_string())
        .collect()
}
