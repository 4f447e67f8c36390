//! Becoming and ceasing to be a member.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tombolo_clusterset::ClusterId;
use tombolo_daemon::seam::Seams;
use tombolo_trust::shell::files::{FileError, IdentityDir};
use tombolo_trust::{
    CertificateDer, Intermediate, JoinToken, Permit, TokenError, TrustError, client_config, new_key_and_csr,
    pinned_client_config, pinned_root,
};
use tombolo_wire::v1;
use tombolo_wire::v1::membership_client::MembershipClient;
use tombolo_wire::version::PROTOCOL_VERSION;
use tonic::{Code, Status};

use super::agent::{CACHE_FILE, SIGHTINGS_FILE, VIPS_FILE};
use super::broker_channel::{ALPN, BrokerChannel, ConnectError, connect};
use super::identity::{
    self, ClusterIdentity, IDENTITY_DIR, Membership, load_membership, save_membership, unix_ms,
};
use crate::config::Config;

/// Time for a broker to admit a cluster: an election may lie in between.
const JOIN_TIME: Duration = Duration::from_secs(20);

/// What `tombolo join` was given.
#[derive(Debug)]
pub struct JoinArgs {
    /// The token's text.
    pub token: String,
    /// Brokers to ask, in this order.
    pub brokers: Vec<SocketAddr>,
    /// The cluster's configuration.
    pub config: Config,
    /// Take the place of a member of the same id.
    pub replace: bool,
}

/// What a join came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Trust domain of the clusterset.
    pub trust_domain: String,
    /// All brokers of the group.
    pub brokers: Vec<String>,
    /// Where the identity lies now.
    pub identity: PathBuf,
    /// Expiry of the cluster's intermediate.
    pub not_after: SystemTime,
}

/// Why a cluster did not join, or did not leave; each says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum JoinError {
    #[error("the token cannot be used: {0}")]
    Token(#[from] TokenError),
    #[error(
        "the token is for cluster {token}, and the configuration says {config}; use the token of {config}: `tombolo token create --cluster {config}`"
    )]
    TokenOfOther { token: ClusterId, config: ClusterId },
    #[error("cluster {cluster} has joined already: {path} holds its identity; `tombolo leave` first, or join with --replace", path = path.display())]
    AlreadyJoined { cluster: ClusterId, path: PathBuf },
    #[error("no broker was named; give at least one with --broker IP:PORT")]
    NoBrokers,
    #[error("no broker could be reached:{}", .0.iter().map(|(broker, error)| format!("\n  {broker}: {error}")).collect::<String>())]
    NoneReached(Vec<(SocketAddr, String)>),
    #[error(
        "the broker at {broker} is not of the clusterset that made this token ({reason}); check the address, and that the token is of this clusterset"
    )]
    WrongRoot { broker: SocketAddr, reason: String },
    /// Used, expired, revoked, unknown or with a wrong secret.
    #[error("the token was refused: {reason}")]
    TokenRefused { reason: String },
    #[error("{reason}")]
    DuplicateId { reason: String },
    #[error("{reason}")]
    ClockSkew { reason: String },
    #[error("the broker at {broker} refuses: {reason}")]
    Refused { broker: SocketAddr, reason: String },
    #[error(
        "the answer of the broker at {broker} cannot be used: {reason}; nothing was written, but the token may be used up"
    )]
    BadReply { broker: SocketAddr, reason: String },
    #[error("a key could not be made: {0}")]
    Key(#[from] tombolo_trust::IssueError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("cannot write to {path}: {source}; check its owner, its mode and free space", path = path.display())]
    Disk { path: PathBuf, source: std::io::Error },
}

/// Joins the clusterset that made `args.token`: makes a key, has a broker that holds the pinned root sign the cluster's
/// intermediate, and writes the identity. The key never leaves this machine.
///
/// # Errors
/// [`JoinError`]. Unless it says otherwise, nothing was written and the token is still good.
pub async fn join(args: JoinArgs, seams: &Seams) -> Result<Joined, JoinError> {
    let JoinArgs {
        token,
        brokers,
        config,
        replace,
    } = args;
    let token = JoinToken::parse(token.trim())?;
    let site = &config.site;
    if token.cluster() != &site.cluster {
        return Err(JoinError::TokenOfOther {
            token: token.cluster().clone(),
            config: site.cluster.clone(),
        });
    }
    let dir = IdentityDir::new(site.data_dir.join(IDENTITY_DIR));
    if !replace && dir.load_chain_and_key().is_ok() {
        return Err(JoinError::AlreadyJoined {
            cluster: site.cluster.clone(),
            path: dir.path().to_owned(),
        });
    }
    if brokers.is_empty() {
        return Err(JoinError::NoBrokers);
    }
    let (key, csr) = new_key_and_csr()?;
    let request = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        token_id: token.id().to_string(),
        token_secret: token.secret().to_vec().into(),
        cluster: site.cluster.to_string(),
        locality: Some((&site.locality).into()),
        network: site.network.to_string(),
        gateways: config.gateways.iter().map(ToString::to_string).collect(),
        csr: csr.to_vec().into(),
        unix_ms: unix_ms(seams.clock.wall()),
        replace,
    };

    let mut unreached = Vec::new();
    for broker in brokers {
        let config = pinned_client_config(token.trust_domain().clone(), token.root_pin(), ALPN);
        let BrokerChannel { channel, certs } = match connect(seams, config, broker).await {
            Ok(connected) => connected,
            Err(ConnectError::Untrusted(error)) => return Err(untrusted(broker, &error)),
            Err(error) => {
                unreached.push((broker, error.to_string()));
                continue;
            }
        };
        let mut client = MembershipClient::new(channel);
        let request = v1::JoinRequest {
            unix_ms: unix_ms(seams.clock.wall()),
            ..request.clone()
        };
        let reply = match timeout(JOIN_TIME, client.join(request)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) if is_elsewhere(status.code()) => {
                unreached.push((broker, status.message().to_owned()));
                continue;
            }
            Ok(Err(status)) => return Err(refusal(broker, &status)),
            Err(_) => {
                unreached.push((
                    broker,
                    format!(
                        "no answer within {} s; its group may have no leader",
                        JOIN_TIME.as_secs()
                    ),
                ));
                continue;
            }
        };
        let bad = |reason: String| JoinError::BadReply { broker, reason };
        let root = pinned_root(&certs, &token.root_pin())
            .ok_or_else(|| bad("it holds no root with the token's pin".to_owned()))?;
        let trust = reply
            .trust
            .ok_or_else(|| bad("it has no trust bundle".to_owned()))?;
        let roots: Vec<CertificateDer<'static>> = trust
            .roots
            .iter()
            .map(|root| CertificateDer::from(root.to_vec()))
            .collect();
        if !roots.contains(&root) {
            return Err(bad(
                "its trust bundle lacks the root that the token pins".to_owned()
            ));
        }
        let certificate = CertificateDer::from(reply.intermediate.to_vec());
        let intermediate =
            Intermediate::load(certificate.clone(), &key).map_err(|error| bad(error.to_string()))?;
        if intermediate.cluster() != &site.cluster || intermediate.trust_domain() != token.trust_domain() {
            return Err(bad(format!(
                "its certificate is for cluster {}",
                intermediate.cluster()
            )));
        }
        let not_after = intermediate
            .validity()
            .map_err(|error| bad(error.to_string()))?
            .not_after;

        let membership = Membership {
            cluster: site.cluster.clone(),
            trust_domain: token.trust_domain().to_string(),
            brokers: if reply.brokers.is_empty() {
                vec![broker.to_string()]
            } else {
                reply.brokers
            },
            incarnation: reply.incarnation,
        };
        // What was cached belongs to an earlier membership, perhaps of another clusterset.
        forget(&site.data_dir, &[CACHE_FILE], seams).await?;
        // The certificate comes last: an identity without it counts as none, and a join begins anew.
        dir.save_roots(&roots)?;
        save_membership(&site.data_dir, &membership, seams).await?;
        dir.save(&[certificate], &key)?;
        return Ok(Joined {
            cluster: membership.cluster,
            trust_domain: membership.trust_domain,
            brokers: membership.brokers,
            identity: dir.path().to_owned(),
            not_after,
        });
    }
    Err(JoinError::NoneReached(unreached))
}

/// Leaves the clusterset: its exports, lease and trust end at the brokers, then its identity and caches here.
///
/// # Errors
/// [`JoinError`]; unless a broker has taken it, everything is as before.
pub async fn leave(config: &Config, seams: &Seams) -> Result<(), JoinError> {
    let site = &config.site;
    let identity = ClusterIdentity::load(&site.data_dir, &site.cluster, seams.clone())?;
    let membership = load_membership(&site.data_dir, seams).await?;
    let brokers = super::run::broker_addresses(&membership.brokers);
    if brokers.is_empty() {
        return Err(JoinError::NoBrokers);
    }
    let mut unreached = Vec::new();
    for broker in brokers {
        let tls = client_config(identity.trust(), identity.certs(), Permit::AnyBroker, ALPN);
        let channel = match connect(seams, tls, broker).await {
            Ok(connected) => connected.channel,
            Err(ConnectError::Untrusted(error)) => return Err(untrusted(broker, &error)),
            Err(error) => {
                unreached.push((broker, error.to_string()));
                continue;
            }
        };
        match timeout(
            JOIN_TIME,
            MembershipClient::new(channel).leave(v1::LeaveRequest {}),
        )
        .await
        {
            Ok(Ok(_)) => {
                let files = [CACHE_FILE, VIPS_FILE, SIGHTINGS_FILE];
                forget(&site.data_dir, &files, seams).await?;
                let inside = ["cert.pem", "key.pem", "roots.pem", "membership.json"];
                return forget(&site.data_dir.join(IDENTITY_DIR), &inside, seams).await;
            }
            Ok(Err(status)) if is_elsewhere(status.code()) => {
                unreached.push((broker, status.message().to_owned()))
            }
            Ok(Err(status)) => {
                return Err(JoinError::Refused {
                    broker,
                    reason: status.message().to_owned(),
                });
            }
            Err(_) => unreached.push((broker, format!("no answer within {} s", JOIN_TIME.as_secs()))),
        }
    }
    Err(JoinError::NoneReached(unreached))
}

async fn forget(dir: &std::path::Path, files: &[&str], seams: &Seams) -> Result<(), JoinError> {
    for file in files {
        let path = dir.join(file);
        seams
            .disk
            .remove(&path)
            .await
            .map_err(|source| JoinError::Disk { path, source })?;
    }
    Ok(())
}

/// A broker whose certificate is not valid at this time is more often a matter of our clock than of another clusterset.
fn untrusted(broker: SocketAddr, error: &TrustError) -> JoinError {
    match error {
        TrustError::Expired { .. } | TrustError::NotYetValid { .. } => JoinError::ClockSkew {
            reason: format!(
                "the certificate of the broker at {broker} is not valid at the time of this machine's clock ({error}); set the clock by NTP and try again"
            ),
        },
        _ => JoinError::WrongRoot {
            broker,
            reason: error.to_string(),
        },
    }
}

/// Whether another broker may do better.
fn is_elsewhere(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
    )
}

/// The broker's refusal says what and what to do; its code says which of the known ones it is.
fn refusal(broker: SocketAddr, status: &Status) -> JoinError {
    let reason = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated => JoinError::TokenRefused { reason },
        Code::AlreadyExists => JoinError::DuplicateId { reason },
        Code::FailedPrecondition | Code::OutOfRange if reason.contains("clock") => {
            JoinError::ClockSkew { reason }
        }
        _ => JoinError::Refused { broker, reason },
    }
}
