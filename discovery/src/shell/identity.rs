//! The cluster's own identity: its intermediate on disk, and the leaves signed with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::Rng;
use serde::{Deserialize, Serialize};
use tombolo_clusterset::ClusterId;
use tombolo_daemon::seam::Seams;
use tombolo_trust::shell::files::{FileError, IdentityDir};
use tombolo_trust::state::TrustState;
use tombolo_trust::{
    CertStore, CertificateDer, Identity, IdentityError, Intermediate, IssueError, PrivateKeyDer, Role,
    Serial, SpiffeId, TrustDomain, TrustError, TrustStore, Usage, Validity, new_key_and_csr, verify_chain,
};

use crate::watched::Trust;

/// Directory of the identity in a cluster's data directory.
pub const IDENTITY_DIR: &str = "identity";

/// What the cluster knows of its membership, beside its certificate.
const MEMBERSHIP_FILE: &str = "membership.json";

/// Most broker addresses that are kept: the group has five at most, and this leaves room for some that were replaced.
pub const MAX_BROKERS: usize = 16;

/// Most subjects whose leaves are remembered: a cluster has some hundreds of service accounts. What does not fit does not
/// hold up a rotation.
const MAX_ISSUED: usize = 10_000;

/// Most subjects that an operator is told of.
const LAGGING_SHOWN: usize = 5;

/// `identity/membership.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// This cluster.
    pub cluster: ClusterId,
    /// Trust domain of the clusterset.
    pub trust_domain: String,
    /// API addresses of the brokers, "ip:port", as last heard.
    pub brokers: Vec<String>,
    /// Incarnation of the clusterset at the join.
    pub incarnation: u64,
}

/// Why there is no identity to run with.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {source}; join the cluster again (`tombolo join`)", path = path.display())]
    Membership { path: PathBuf, source: std::io::Error },
    #[error("{path} is of cluster {found}, and the configuration says {ours}; use the data_dir of {ours}, or correct `cluster`", path = path.display())]
    OtherCluster {
        path: PathBuf,
        found: ClusterId,
        ours: ClusterId,
    },
    #[error("the cluster's intermediate cannot sign: {0}")]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("trust domain of the clusterset: {0}")]
    Domain(#[from] tombolo_trust::SpiffeError),
    #[error(transparent)]
    Cert(#[from] tombolo_trust::CertError),
}

/// The identity of this cluster, renewed in place.
#[derive(Debug)]
pub struct ClusterIdentity {
    data_dir: PathBuf,
    cluster: ClusterId,
    intermediate: ArcSwap<Intermediate>,
    /// The agent's own leaf.
    certs: Arc<CertStore>,
    trust: Arc<TrustStore>,
    issued: Mutex<Issued>,
    seams: Seams,
}

/// Which leaves were issued under which intermediate since this process began, so that a rotation of the root waits for those
/// that still chain to the old one.
#[derive(Debug, Default)]
struct Issued {
    /// Counts the intermediates of this process.
    generation: u64,
    /// The first generation under the newest root.
    newest_root_since: u64,
    /// Generation and expiry of the newest leaf of each subject.
    leaves: BTreeMap<String, (u64, SystemTime)>,
}

impl Issued {
    fn note(&mut self, subject: &SpiffeId, not_after: SystemTime, now: SystemTime) {
        if self.leaves.len() >= MAX_ISSUED {
            self.leaves.retain(|_, (_, not_after)| *not_after > now);
        }
        if self.leaves.len() < MAX_ISSUED {
            self.leaves
                .insert(subject.subject().to_string(), (self.generation, not_after));
        }
    }

    fn of_older_root(&self, now: SystemTime) -> impl Iterator<Item = &str> {
        let since = self.newest_root_since;
        let old = self
            .leaves
            .iter()
            .filter(move |(_, (generation, not_after))| *generation < since && *not_after > now);
        old.map(|(subject, _)| subject.as_str())
    }
}

impl ClusterIdentity {
    /// Loads what `tombolo join` has written, and signs the agent's own leaf.
    ///
    /// # Errors
    /// [`Error`] names the file and what to do.
    pub fn load(data_dir: &Path, cluster: &ClusterId, seams: Seams) -> Result<Self, Error> {
        let dir = IdentityDir::new(data_dir.join(IDENTITY_DIR));
        let (chain, key) = dir.load_chain_and_key()?;
        let cert = chain.first().cloned().ok_or(tombolo_trust::CertError::Missing)?;
        let intermediate = Intermediate::load(cert, &key)?;
        if intermediate.cluster() != cluster {
            let (found, ours) = (intermediate.cluster().clone(), cluster.clone());
            return Err(Error::OtherCluster {
                path: dir.path().to_owned(),
                found,
                ours,
            });
        }
        let domain = intermediate.trust_domain().clone();
        let trust = TrustStore::new(TrustState::new(domain, dir.load_roots()?, BTreeSet::new(), 0)?);
        let own = own_leaf(&intermediate, &seams)?;
        Ok(Self {
            data_dir: data_dir.to_owned(),
            cluster: cluster.clone(),
            intermediate: ArcSwap::from_pointee(intermediate),
            certs: CertStore::new(own),
            trust,
            issued: Mutex::default(),
            seams,
        })
    }

    /// What the agent presents to brokers.
    #[must_use]
    pub fn certs(&self) -> Arc<CertStore> {
        Arc::clone(&self.certs)
    }

    /// What it trusts.
    #[must_use]
    pub fn trust(&self) -> Arc<TrustStore> {
        Arc::clone(&self.trust)
    }

    /// The trust in use, as far as the agent itself needs it: without denied keys.
    #[must_use]
    pub fn trust_in_use(&self) -> Trust {
        let state = self.trust.load();
        Trust {
            trust_domain: state.trust_domain().to_string(),
            roots: state.roots().iter().map(|root| root.to_vec()).collect(),
            revision: state.revision(),
            denied: Vec::new(),
        }
    }

    /// The clusterset's trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        self.intermediate.load().trust_domain().clone()
    }

    /// This cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// When the intermediate is valid.
    ///
    /// # Errors
    /// When its times cannot be read.
    pub fn validity(&self) -> Result<Validity, Error> {
        Ok(self.intermediate.load().validity()?)
    }

    /// Signs a leaf for a process of this cluster: leaf, then intermediate.
    ///
    /// # Errors
    /// When the request is not acceptable or the intermediate is not valid now.
    pub fn issue(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        // Held over the signature, so that a renewal in between cannot take the old intermediate for the new one.
        let mut issued = self.issued.lock();
        let chain = issue(&self.intermediate.load(), &self.seams, csr, id, ttl)?;
        if let Some(validity) = chain
            .first()
            .and_then(|leaf| tombolo_trust::cert::validity(leaf).ok())
        {
            issued.note(id, validity.not_after, self.seams.clock.wall());
        }
        Ok(chain)
    }

    /// What still uses the old root during a rotation, for the operator; empty when nothing does.
    #[must_use]
    pub fn lagging(&self) -> String {
        if self.trust.load().roots().len() < 2 {
            return String::new();
        }
        if !self.is_of_newest_root() {
            return "its intermediate is of the old root".to_owned();
        }
        let issued = self.issued.lock();
        let old: Vec<&str> = issued.of_older_root(self.seams.clock.wall()).collect();
        match old.get(LAGGING_SHOWN..) {
            None if old.is_empty() => String::new(),
            None | Some([]) => format!("certificates of the old root are in use by {}", old.join(", ")),
            Some(more) => {
                let shown = old.get(..LAGGING_SHOWN).unwrap_or_default().join(", ");
                format!(
                    "certificates of the old root are in use by {shown} and {} more",
                    more.len()
                )
            }
        }
    }

    /// Signs the agent's own leaf anew.
    ///
    /// # Errors
    /// When the intermediate is not valid now.
    pub fn renew_own_leaf(&self) -> Result<(), Error> {
        self.certs
            .replace(own_leaf(&self.intermediate.load(), &self.seams)?);
        Ok(())
    }

    /// Takes the trust that the broker tells, into memory and onto the disk.
    ///
    /// # Errors
    /// When it is of another trust domain or cannot be used; the old one then stays.
    pub fn take_trust(&self, trust: &Trust) -> Result<(), Error> {
        let roots: Vec<CertificateDer<'static>> =
            trust.roots.iter().cloned().map(CertificateDer::from).collect();
        let domain = TrustDomain::parse(&trust.trust_domain)?;
        // Brokers, all that the agent speaks to, hold no intermediate that could be denied.
        let state = TrustState::new(domain, roots.clone(), BTreeSet::new(), trust.revision)?;
        let same_roots = self.trust.load().roots() == roots.as_slice();
        self.trust.replace(state)?;
        if !same_roots {
            IdentityDir::new(self.data_dir.join(IDENTITY_DIR)).save_roots(&roots)?;
        }
        Ok(())
    }

    /// Takes a renewed intermediate, onto the disk and into use.
    ///
    /// # Errors
    /// When it does not belong to `key` or this cluster, or cannot be written; the old one then stays.
    pub fn take_intermediate(
        &self,
        cert: CertificateDer<'static>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<(), Error> {
        let renewed = Intermediate::load(cert.clone(), key)?;
        let dir = IdentityDir::new(self.data_dir.join(IDENTITY_DIR));
        if renewed.cluster() != &self.cluster {
            let (found, ours) = (renewed.cluster().clone(), self.cluster.clone());
            return Err(Error::OtherCluster {
                path: dir.path().to_owned(),
                found,
                ours,
            });
        }
        let own = own_leaf(&renewed, &self.seams)?;
        let was_newest = self.is_of_newest_root();
        dir.save(&[cert], key)?;
        let mut issued = self.issued.lock();
        self.intermediate.store(Arc::new(renewed));
        self.certs.replace(own);
        issued.generation += 1;
        if self.trust.load().roots().len() > 1 && !was_newest && self.is_of_newest_root() {
            issued.newest_root_since = issued.generation;
        }
        Ok(())
    }

    /// Whether the intermediate was signed by the newest root: false between the switch of a rotation and the renewal.
    #[must_use]
    pub fn is_of_newest_root(&self) -> bool {
        let state = self.trust.load();
        let Some(newest) = state.roots().last().cloned() else {
            return true;
        };
        let Ok(newest) = TrustState::new(state.trust_domain().clone(), vec![newest], BTreeSet::new(), 0)
        else {
            return true;
        };
        let own = self.certs.load();
        let Some((leaf, extra)) = own.chain().split_first() else {
            return true;
        };
        verify_chain(leaf, extra, self.seams.clock.wall(), &newest, Usage::Client).is_ok()
    }
}

fn issue(
    intermediate: &Intermediate,
    seams: &Seams,
    csr: &[u8],
    id: &SpiffeId,
    ttl: Duration,
) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let serial = Serial::from_random(seams.entropy.rng().random());
    let leaf = intermediate.issue_leaf(csr, id, serial, seams.clock.wall(), ttl)?;
    Ok(vec![leaf, intermediate.cert().clone()])
}

fn own_leaf(intermediate: &Intermediate, seams: &Seams) -> Result<Identity, Error> {
    let id = SpiffeId::role(
        intermediate.trust_domain().clone(),
        intermediate.cluster().clone(),
        Role::Agent,
    );
    let (key, csr) = new_key_and_csr()?;
    let chain = issue(intermediate, seams, &csr, &id, tombolo_trust::issue::LEAF_TTL)?;
    Ok(Identity::new(chain, &key)?)
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Where the membership of a data directory is kept.
#[must_use]
pub fn membership_path(data_dir: &Path) -> PathBuf {
    data_dir.join(IDENTITY_DIR).join(MEMBERSHIP_FILE)
}

/// Reads `identity/membership.json`.
///
/// # Errors
/// [`Error::Membership`].
pub async fn load_membership(data_dir: &Path, seams: &Seams) -> Result<Membership, Error> {
    let path = membership_path(data_dir);
    let failed = |source| Error::Membership {
        path: path.clone(),
        source,
    };
    let bytes = seams.disk.read(&path).await.map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// Writes `identity/membership.json`.
///
/// # Errors
/// [`Error::Membership`].
pub async fn save_membership(data_dir: &Path, membership: &Membership, seams: &Seams) -> Result<(), Error> {
    let path = membership_path(data_dir);
    let failed = |source| Error::Membership {
        path: path.clone(),
        source,
    };
    let bytes = serde_json::to_vec_pretty(membership).map_err(|error| failed(error.into()))?;
    seams.disk.write_atomic(&path, bytes).await.map_err(failed)
}
