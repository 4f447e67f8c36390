//! The chain verifier: whether a chain of certificates proves the SPIFFE id that its leaf names.
//!
//! webpki proves the signatures, times and key usage. The clusterset's own rules come on top, because URI name
//! constraints do not work in webpki: a cluster's leaf has exactly one intermediate, which names the same cluster;
//! brokers and operators come directly from a root; an evicted cluster's intermediate is denied.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use tombolo_clusterset::ClusterId;
use webpki::{EndEntityCert, KeyUsage};

use crate::cert::{self, CertError};
use crate::fingerprint::Fingerprint;
use crate::spiffe::{SpiffeId, Subject, TrustDomain};
use crate::state::{ROOTS_MAX, TrustState};

/// Most certificates that a peer may send with its leaf: an intermediate and both roots of a rotation. It bounds
/// the work that an unauthenticated peer can ask for.
pub const CHAIN_EXTRA_MAX: usize = 1 + ROOTS_MAX;

/// Why a chain is refused, or a trust state cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A certificate cannot be read or names no identity.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The leaf belongs to another clusterset.
    #[error(
        "peer {peer} belongs to another clusterset; this one is {ours}: check the address that was dialled, or join the peer"
    )]
    ForeignTrustDomain {
        /// Who the peer says it is.
        peer: SpiffeId,
        /// Our trust domain.
        ours: TrustDomain,
    },
    /// A cluster's intermediate was presented as a leaf.
    #[error("{id} is a cluster's intermediate, which signs and never speaks; present a leaf that it issued")]
    NotALeaf {
        /// The id of the intermediate.
        id: SpiffeId,
    },
    /// A cluster's leaf came without its intermediate.
    #[error(
        "{leaf} came without its cluster's intermediate; cert.pem must hold the leaf and then the intermediate"
    )]
    MissingIntermediate {
        /// The leaf's id.
        leaf: SpiffeId,
    },
    /// More certificates than the leaf may have.
    #[error(
        "{leaf} came with {found} intermediates, {allowed} allowed; cert.pem must hold just the leaf and, for a cluster, its intermediate"
    )]
    ChainTooLong {
        /// The leaf's id.
        leaf: SpiffeId,
        /// How many came, without trusted roots.
        found: usize,
        /// How many may come.
        allowed: usize,
    },
    /// The intermediate names someone other than the leaf's cluster: a cluster tries to speak for another.
    #[error(
        "{leaf} is signed by the intermediate of {intermediate}, which may sign for its own cluster only; if you do not know why, treat that intermediate as stolen: `tombolo evict`"
    )]
    ForeignIntermediate {
        /// The leaf's id.
        leaf: SpiffeId,
        /// Who the intermediate names.
        intermediate: SpiffeId,
    },
    /// The intermediate belongs to an evicted cluster.
    #[error(
        "{leaf} is refused: cluster {cluster} was evicted with this intermediate; join it again with a new token"
    )]
    Denied {
        /// The leaf's id.
        leaf: SpiffeId,
        /// The evicted cluster.
        cluster: ClusterId,
    },
    /// No trusted root signed the chain.
    #[error(
        "{leaf} is not signed by a root that is trusted here (trust revision {revision}); bring the older of both sides in contact with a broker, or join it again"
    )]
    UnknownRoot {
        /// The leaf's id.
        leaf: SpiffeId,
        /// The revision of the trust state that was asked.
        revision: u64,
    },
    /// A certificate of the chain is no longer valid.
    #[error(
        "a certificate of {leaf} expired {ago_secs} s ago; its agent renews it when it reaches a broker, check that agent and both clocks"
    )]
    Expired {
        /// The leaf's id.
        leaf: SpiffeId,
        /// How long ago, seconds.
        ago_secs: u64,
    },
    /// A certificate of the chain is not valid yet.
    #[error("a certificate of {leaf} is valid only in {in_secs} s; set both clocks right (NTP)")]
    NotYetValid {
        /// The leaf's id.
        leaf: SpiffeId,
        /// How long until then, seconds.
        in_secs: u64,
    },
    /// Signed and timely, and still not acceptable: wrong key usage, not a CA, a bad signature, …
    #[error("certificate of {leaf} is not acceptable: {reason}; reissue it")]
    Unacceptable {
        /// The leaf's id.
        leaf: SpiffeId,
        /// What webpki says.
        reason: String,
    },
    /// A genuine peer, but not one that this connection accepts.
    #[error("peer is {peer}, but {wanted} is expected here; check the address that was dialled")]
    NotPermitted {
        /// Who the peer is.
        peer: SpiffeId,
        /// Who would be accepted.
        wanted: String,
    },
    /// The pinned root did not come.
    #[error(
        "the broker did not present the root {pin} that the join token pins; check the broker's address, or create a new token if the root was rotated"
    )]
    PinMismatch {
        /// The pinned key.
        pin: Fingerprint,
    },
    /// A trust state with no root or too many.
    #[error("trust state has {found} roots; it must have one, or two during a rotation")]
    RootCount {
        /// How many it has.
        found: usize,
    },
    /// A root that cannot sign.
    #[error("root certificate {at} is not usable: {reason}; fetch the roots again from a broker")]
    BadRoot {
        /// Its place in the list, from 0.
        at: usize,
        /// What is wrong.
        reason: String,
    },
    /// A new trust state is of another trust domain.
    #[error(
        "the new trust state is of {found}, the present one of {ours}; a trust domain never changes: this broker serves another clusterset"
    )]
    TrustDomainChanged {
        /// The new trust domain.
        found: TrustDomain,
        /// The present one.
        ours: TrustDomain,
    },
}

/// In which part a peer presents its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// It dialled us.
    Client,
    /// We dialled it.
    Server,
}

/// Whether `leaf`, with the `extra` certificates sent after it, proves the SPIFFE id that it names.
///
/// Trusted roots among `extra` are ignored, since brokers send theirs for joining clusters to pin.
///
/// # Errors
/// One [`TrustError`] per reason, in this order: unreadable or without one id; another trust domain; wrong number of
/// certificates; not signed or not timely; another cluster's intermediate; denied.
pub fn verify_chain(
    leaf: &CertificateDer<'_>,
    extra: &[CertificateDer<'_>],
    now: SystemTime,
    trust: &TrustState,
    usage: Usage,
) -> Result<SpiffeId, TrustError> {
    let id = cert::spiffe_id(leaf)?;
    if id.trust_domain() != trust.trust_domain() {
        return Err(TrustError::ForeignTrustDomain {
            peer: id,
            ours: trust.trust_domain().clone(),
        });
    }
    if extra.len() > CHAIN_EXTRA_MAX {
        return Err(TrustError::ChainTooLong {
            leaf: id,
            found: extra.len(),
            allowed: CHAIN_EXTRA_MAX,
        });
    }
    let intermediates: Vec<_> = extra
        .iter()
        .filter(|cert| !trust.is_root(cert))
        .cloned()
        .collect();
    let signer = signing_intermediate(&id, &intermediates)?;
    let on_path = verify_signatures(&id, leaf, &intermediates, now, trust, usage)?;
    match (signer, on_path) {
        (None, None) => Ok(id),
        (Some(intermediate), Some(named)) => verify_cluster(id, intermediate, named, trust),
        // A root signed a cluster's leaf directly, so that webpki did not need the intermediate that was sent.
        (Some(_), None) => Err(TrustError::MissingIntermediate { leaf: id }),
        (None, Some(intermediate)) => Err(TrustError::ForeignIntermediate {
            leaf: id,
            intermediate,
        }),
    }
}

/// The first reason in `trust` why a chain that was accepted once must not be used any longer: eviction. Times are
/// not asked: a connection outlives its certificate, up to the limit that its keeper sets.
///
/// # Errors
/// [`TrustError::Denied`]; [`TrustError::Cert`] when the chain cannot be read.
pub fn denied_in_chain(certs: &[CertificateDer<'_>], trust: &TrustState) -> Result<(), TrustError> {
    let Some((leaf, extra)) = certs.split_first() else {
        return Err(CertError::Missing.into());
    };
    let id = cert::spiffe_id(leaf)?;
    extra
        .iter()
        .filter(|cert| !trust.is_root(cert))
        .try_for_each(|cert| check_denied(&id, cert, trust))
}

/// The intermediate that must have signed the leaf of `id`: exactly one for a cluster's leaf, none for brokers and
/// operators, whatever else they send.
fn signing_intermediate<'a, 'c>(
    id: &SpiffeId,
    intermediates: &'a [CertificateDer<'c>],
) -> Result<Option<&'a CertificateDer<'c>>, TrustError> {
    match id.subject() {
        Subject::Cluster(_) => Err(TrustError::NotALeaf { id: id.clone() }),
        Subject::Broker(_) | Subject::Operator(_) => Ok(None),
        Subject::Role { .. } | Subject::Workload { .. } => match intermediates {
            [] => Err(TrustError::MissingIntermediate { leaf: id.clone() }),
            [one] => Ok(Some(one)),
            more => Err(TrustError::ChainTooLong {
                leaf: id.clone(),
                found: more.len(),
                allowed: 1,
            }),
        },
    }
}

/// That a trusted root signed the leaf, over one of the intermediates or directly, for this use and this time.
/// Returns whom the intermediate on the path names, if there is one.
fn verify_signatures(
    id: &SpiffeId,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: SystemTime,
    trust: &TrustState,
    usage: Usage,
) -> Result<Option<SpiffeId>, TrustError> {
    let refuse = |error| refusal(id, &error, trust.revision());
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let end_entity = EndEntityCert::try_from(leaf).map_err(refuse)?;
    let path = end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            trust.anchors(),
            intermediates,
            UnixTime::since_unix_epoch(since_epoch),
            usage,
            None,
            None,
        )
        .map_err(refuse)?;
    let mut on_path = path.intermediate_certificates();
    let named = on_path
        .next()
        .map(|intermediate| cert::spiffe_id(&intermediate.der()))
        .transpose()?;
    match on_path.count() {
        0 => Ok(named),
        more => Err(TrustError::ChainTooLong {
            leaf: id.clone(),
            found: 1 + more,
            allowed: 1,
        }),
    }
}

/// That the intermediate names the leaf's own cluster, and that the cluster was not evicted with it.
fn verify_cluster(
    leaf: SpiffeId,
    intermediate: &CertificateDer<'_>,
    named: SpiffeId,
    trust: &TrustState,
) -> Result<SpiffeId, TrustError> {
    let same_cluster = matches!(named.subject(), Subject::Cluster(cluster) if leaf.is_under_cluster(cluster));
    if !same_cluster || named.trust_domain() != leaf.trust_domain() {
        return Err(TrustError::ForeignIntermediate {
            leaf,
            intermediate: named,
        });
    }
    check_denied(&leaf, intermediate, trust)?;
    Ok(leaf)
}

fn check_denied(
    leaf: &SpiffeId,
    intermediate: &CertificateDer<'_>,
    trust: &TrustState,
) -> Result<(), TrustError> {
    let Some(cluster) = leaf.cluster() else {
        return Ok(());
    };
    if trust.denied().contains(&cert::fingerprint(intermediate)?) {
        return Err(TrustError::Denied {
            leaf: leaf.clone(),
            cluster: cluster.clone(),
        });
    }
    Ok(())
}

fn refusal(leaf: &SpiffeId, error: &webpki::Error, revision: u64) -> TrustError {
    let leaf = leaf.clone();
    match error {
        webpki::Error::CertExpired { time, not_after } => TrustError::Expired {
            leaf,
            ago_secs: time.as_secs().saturating_sub(not_after.as_secs()),
        },
        webpki::Error::CertNotValidYet { time, not_before } => TrustError::NotYetValid {
            leaf,
            in_secs: not_before.as_secs().saturating_sub(time.as_secs()),
        },
        // An impostor's root may bear the name of a trusted one: then only the signature tells.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            TrustError::UnknownRoot { leaf, revision }
        }
        _ => TrustError::Unacceptable {
            leaf,
            reason: error.to_string(),
        },
    }
}

/// The wall clock that the TLS library hands to a verifier, as the standard library's type.
pub(crate) fn system_time(now: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs())
}

#[cfg(test)]
mod tests;
