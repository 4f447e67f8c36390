//! The certificate that a process speaks with, and the trust that it holds its peers against.
//!
//! The key is made here and never leaves; the agent signs it (`Agent.IssueLeaf`). Both are cached on disk, so that a gateway
//! starts while its agent is away (DESIGN §4.1, §4.2). Renewal comes at half life, and when a rotation waits for it; tunnels that are up keep the certificate
//! they began with, and [`crate::tunnel::Tunnel::is_outdated`] says so.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tombolo_clusterset::{ClusterId, Snapshot};
use tombolo_daemon::backoff::Backoff;
use tombolo_daemon::seam::Seams;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_trust::shell::files::{FileError, IdentityDir};
use tombolo_trust::{
    CertStore, CertificateDer, Fingerprint, Identity, Permit, PrivateKeyDer, SpiffeId, TrustDomain,
    TrustState, TrustStore, Usage, client_config, new_key_and_csr, server_config, verify_chain,
};
use tombolo_wire::local::connect_uds;
use tombolo_wire::v1;

/// Where the denied intermediates stand beside the cached certificate, one fingerprint a line.
const DENIED_FILE: &str = "denied";

/// Longest sleep before the wall clock is asked again whether to renew: it may have jumped, or the machine slept.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Time for one answer of the agent, which signs in memory.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Delays between tries to get a certificate under the newest root, while a rotation waits for ours: the first spreads the
/// processes of a cluster, which all hear of it at once; the longest is small against an operator's patience.
const ROTATION_BASE: Duration = Duration::from_millis(500);
const ROTATION_MAX: Duration = Duration::from_secs(30);

/// What [`LocalIdentity::start`] needs.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// Our cluster.
    pub cluster: ClusterId,
    /// Whom the certificate names within the cluster: `role/gateway`, or `ns/NAMESPACE/sa/ACCOUNT`.
    pub subject: String,
    /// The agent's socket.
    pub agent_socket: PathBuf,
    /// The cache: `leaf/<role>` in the data directory.
    pub cache_dir: PathBuf,
    /// Newest snapshot: brings roots and evictions.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
}

/// Why there is no identity, or not a new one.
#[derive(Debug, thiserror::Error)]
pub enum LocalIdentityError {
    /// The agent did not sign.
    #[error("the agent at {socket} issues no certificate for {subject}: {reason}; is it running, and is its cluster joined?", socket = socket.display())]
    Agent {
        /// Its socket.
        socket: PathBuf,
        /// For whom.
        subject: String,
        /// What it said.
        reason: String,
    },
    /// What the agent answered is no identity of ours.
    #[error("the agent at {socket} answered with an unusable certificate: {reason}", socket = socket.display())]
    Answer {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key could not be made.
    #[error("cannot make a key: {0}")]
    Key(#[from] tombolo_trust::IssueError),
    /// The cache could not be written.
    #[error(transparent)]
    Cache(#[from] FileError),
    /// The process was asked to end before the agent answered.
    #[error("shut down before the agent issued a certificate")]
    ShutDown,
}

/// Our certificate and our trust. Cheap to clone; all clones see renewals.
#[derive(Debug, Clone)]
pub struct LocalIdentity {
    certs: Arc<CertStore>,
    trust: Arc<TrustStore>,
    /// Counts renewals.
    generation: Arc<watch::Sender<u64>>,
}

impl LocalIdentity {
    /// An identity that somebody else keeps, as tests do.
    #[must_use]
    pub fn fixed(certs: Arc<CertStore>, trust: Arc<TrustStore>) -> Self {
        Self {
            certs,
            trust,
            generation: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Starts from the cache, or else waits until the agent has issued a certificate; then keeps both certificate and trust
    /// current until shutdown.
    ///
    /// # Errors
    /// [`LocalIdentityError::ShutDown`] when there was nothing to start from before the process had to end.
    pub async fn start(
        config: IdentityConfig,
        seams: Seams,
        shutdown: Shutdown,
    ) -> Result<Self, LocalIdentityError> {
        let keeper = Keeper {
            dir: IdentityDir::new(&config.cache_dir),
            config,
            seams,
            unsaved: Mutex::default(),
            changed: Notify::new(),
        };
        let identity = match keeper.cached().await {
            Some((identity, trust)) => Self::fixed(CertStore::new(identity), TrustStore::new(trust)),
            None => {
                let (identity, trust) = tokio::select! {
                    issued = keeper.issue_until_done() => keeper.take(issued),
                    () = shutdown.drain() => return Err(LocalIdentityError::ShutDown),
                };
                keeper.save(&trust).await;
                Self::fixed(CertStore::new(identity), TrustStore::new(trust))
            }
        };
        let kept = identity.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = supervise(Arc::new(keeper), kept) => {}
                // Certificates outlive a drain.
                () = shutdown.drain() => {}
            }
        });
        Ok(identity)
    }

    /// Who we are.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        self.certs.load().id().clone()
    }

    /// The certificates.
    #[must_use]
    pub fn certs(&self) -> &Arc<CertStore> {
        &self.certs
    }

    /// The trust.
    #[must_use]
    pub fn trust(&self) -> &Arc<TrustStore> {
        &self.trust
    }

    /// Takes a renewed certificate: the next handshake uses it.
    pub fn renew(&self, identity: Identity) {
        self.certs.replace(identity);
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// How often the certificate was renewed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Told at each renewal.
    #[must_use]
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// TLS as a server, for `permit`.
    #[must_use]
    pub fn server_tls(&self, permit: Permit, alpn: &[u8]) -> Arc<rustls::ServerConfig> {
        server_config(Arc::clone(&self.trust), Arc::clone(&self.certs), permit, &[alpn])
    }

    /// TLS as a client, to `permit`.
    #[must_use]
    pub fn client_tls(&self, permit: Permit, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
        client_config(Arc::clone(&self.trust), Arc::clone(&self.certs), permit, &[alpn])
    }
}

/// Lets the keeper run for ever, however often it dies: without it nothing is renewed and nobody is evicted.
async fn supervise(keeper: Arc<Keeper>, identity: LocalIdentity) {
    let mut rng = keeper.seams.entropy.rng();
    let mut backoff = Backoff::default();
    loop {
        let begun = keeper.seams.clock.now();
        // The set ends the keeper with this future.
        let mut tasks = JoinSet::new();
        let (running, kept) = (Arc::clone(&keeper), identity.clone());
        tasks.spawn(async move { running.keep(kept).await });
        let ended = tasks.join_next().await;
        if keeper.seams.clock.now().saturating_duration_since(begun) > backoff.max() {
            backoff.reset();
        }
        let pause = backoff.next(&mut rng);
        let retry_in_ms = pause.as_millis();
        match ended {
            Some(Err(error)) => {
                tracing::warn!(%error, retry_in_ms, "the keeper of the certificate died and starts again; this is a bug, please report it with the log");
            }
            _ => tracing::warn!(
                retry_in_ms,
                "the keeper of the certificate ended and starts again"
            ),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Keeps an identity current.
struct Keeper {
    config: IdentityConfig,
    dir: IdentityDir,
    seams: Seams,
    /// The newest certificate, until it is on disk.
    unsaved: Mutex<Option<Leaf>>,
    /// Told when certificate or trust are newer than what is on disk.
    changed: Notify,
}

/// What the agent has answered.
struct Issued {
    identity: Identity,
    trust: TrustState,
    leaf: Leaf,
}

/// What the agent signed, and the key that belongs to it.
struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Keeper {
    /// What the last run left, if it can still be used.
    async fn cached(&self) -> Option<(Identity, TrustState)> {
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || Ok::<_, FileError>((dir.load()?, dir.load_roots()?)));
        let (identity, roots) = match read.await {
            Ok(Ok(found)) => found,
            Ok(Err(FileError::Missing { .. })) => return None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cached certificate is unusable; asking the agent for a new one");
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "reading the cached certificate failed; asking the agent for a new one");
                return None;
            }
        };
        if identity.validity().is_expired(self.seams.clock.wall()) || !self.is_ours(identity.id()) {
            tracing::info!(id = %identity.id(), "cached certificate is expired or another's; asking the agent for a new one");
            return None;
        }
        let denied = self.cached_denied().await;
        match TrustState::new(identity.id().trust_domain().clone(), roots, denied, 0) {
            Ok(trust) => Some((identity, trust)),
            Err(error) => {
                tracing::warn!(%error, "cached roots are unusable; asking the agent for new ones");
                None
            }
        }
    }

    async fn cached_denied(&self) -> BTreeSet<Fingerprint> {
        let path = self.dir.path().join(DENIED_FILE);
        match self.seams.disk.read(&path).await {
            Ok(bytes) => String::from_utf8_lossy(&bytes)
                .lines()
                .filter_map(fingerprint)
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                tracing::warn!(%error, "list of evicted clusters is unreadable; the next snapshot brings it");
                BTreeSet::new()
            }
        }
    }

    /// The first certificate: tried until the agent answers.
    async fn issue_until_done(&self) -> Issued {
        let mut backoff = Backoff::default();
        let mut rng = self.seams.entropy.rng();
        loop {
            match self.issue().await {
                Ok(issued) => return issued,
                Err(error) => {
                    let pause = backoff.next(&mut rng);
                    tracing::warn!(%error, retry_in_ms = pause.as_millis(), "no certificate yet");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Asks the agent for a certificate over a new key.
    async fn issue(&self) -> Result<Issued, LocalIdentityError> {
        let socket = &self.config.agent_socket;
        let unusable = |reason: String| LocalIdentityError::Answer {
            socket: socket.clone(),
            reason,
        };
        let refused = |reason: String| {
            let subject = self.config.subject.clone();
            LocalIdentityError::Agent {
                socket: socket.clone(),
                subject,
                reason,
            }
        };
        let (key, csr) = new_key_and_csr()?;
        let request = v1::IssueLeafRequest {
            subject: self.config.subject.clone(),
            csr: csr.as_ref().to_vec().into(),
        };
        let mut agent = v1::agent_client::AgentClient::new(connect_uds(socket));
        let reply = match tokio::time::timeout(ISSUE_TIMEOUT, agent.issue_leaf(request)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => return Err(refused(status.message().to_owned())),
            Err(late) => return Err(refused(late.to_string())),
        };
        let chain: Vec<_> = reply
            .chain
            .into_iter()
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect();
        let identity = Identity::new(chain.clone(), &key).map_err(|error| unusable(error.to_string()))?;
        if !self.is_ours(identity.id()) {
            return Err(unusable(format!(
                "it names {}, not {}",
                identity.id(),
                self.config.subject
            )));
        }
        let bundle = reply
            .trust
            .ok_or_else(|| unusable("it brings no roots".to_owned()))?;
        let roots = bundle.roots.iter().map(|root| root.to_vec());
        let denied = bundle
            .denied
            .iter()
            .filter_map(|key| <[u8; 32]>::try_from(key.as_ref()).ok());
        let trust = trust_state(&bundle.trust_domain, roots, denied, bundle.revision).map_err(unusable)?;
        let leaf = Leaf { chain, key };
        Ok(Issued {
            identity,
            trust,
            leaf,
        })
    }

    /// Takes what was issued, and leaves it to be saved.
    fn take(&self, issued: Issued) -> (Identity, TrustState) {
        let Issued {
            identity,
            trust,
            leaf,
        } = issued;
        *self.unsaved.lock() = Some(leaf);
        tracing::info!(id = %identity.id(), not_after = ?identity.validity().not_after, "certificate issued");
        (identity, trust)
    }

    /// Saves what is newer than the cache. A full disk costs the next start its head start, not this one its certificate.
    async fn save(&self, trust: &TrustState) {
        let leaf = self.unsaved.lock().take();
        let (dir, roots) = (self.dir.clone(), trust.roots().to_vec());
        let saved = tokio::task::spawn_blocking(move || {
            if let Some(Leaf { chain, key }) = leaf {
                dir.save(&chain, &key)?;
            }
            dir.save_roots(&roots)
        });
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "certificate and roots are not cached"),
            Err(error) => tracing::warn!(%error, "certificate and roots are not cached"),
        }
        self.save_denied(trust).await;
    }

    async fn save_denied(&self, trust: &TrustState) {
        let lines: String = trust
            .denied()
            .iter()
            .map(|key| format!("{}\n", HEXLOWER.encode(key.as_bytes())))
            .collect();
        let path = self.dir.path().join(DENIED_FILE);
        if let Err(error) = self.seams.disk.write_atomic(&path, lines.into_bytes()).await {
            tracing::warn!(%error, "list of evicted clusters is not cached");
        }
    }

    fn is_ours(&self, id: &SpiffeId) -> bool {
        let expected = format!(
            "spiffe://{}/cluster/{}/{}",
            id.trust_domain(),
            self.config.cluster,
            self.config.subject
        );
        id.to_string() == expected
    }

    /// Renews, takes in trust and saves both, for ever. Saving stands beside: no eviction waits for a disk.
    async fn keep(&self, identity: LocalIdentity) {
        let saving = async {
            loop {
                self.changed.notified().await;
                self.save(&identity.trust.load()).await;
            }
        };
        tokio::select! {
            () = self.renew(&identity) => {}
            () = saving => {}
        }
    }

    async fn renew(&self, identity: &LocalIdentity) {
        let mut rng = self.seams.entropy.rng();
        let mut backoff = Backoff::default();
        let mut rotation = Backoff::decorrelated(ROTATION_BASE, ROTATION_MAX);
        let mut snapshots = self.config.snapshots.clone();
        let mut random = rng.random();
        // No try before.
        let mut retry_at = self.seams.clock.now();
        let mut rotate_at = None;
        loop {
            self.take_trust(identity, &mut snapshots);
            let (now, present) = (self.seams.clock.now(), identity.certs.load());
            let half_life = present.validity().renew_in(self.seams.clock.wall(), random);
            let due = if self.is_of_older_root(&present, &identity.trust.load()) {
                let at = *rotate_at.get_or_insert_with(|| now + rotation.next(&mut rng));
                half_life.min(at.saturating_duration_since(now))
            } else {
                rotate_at = None;
                rotation.reset();
                half_life
            };
            let pause = due.max(retry_at.saturating_duration_since(now));
            if !pause.is_zero() {
                tokio::select! {
                    Ok(()) = snapshots.changed() => {}
                    () = tokio::time::sleep(pause.min(CLOCK_CHECK)) => {}
                }
                continue;
            }
            rotate_at = None;
            let issuing = self.issue();
            tokio::pin!(issuing);
            let issued = loop {
                tokio::select! {
                    issued = &mut issuing => break issued,
                    Ok(()) = snapshots.changed() => self.take_trust(identity, &mut snapshots),
                }
            };
            match issued {
                // The agent has not renewed its own yet; ours is as good, and tunnels need not be opened anew.
                Ok(issued)
                    if !half_life.is_zero()
                        && self.is_of_older_root(&issued.identity, &identity.trust.load()) =>
                {
                    tracing::debug!("the agent still issues certificates of the old root; asking again");
                }
                Ok(issued) => {
                    let (renewed, trust) = self.take(issued);
                    identity.renew(renewed);
                    replace(&identity.trust, trust);
                    self.changed.notify_one();
                    backoff.reset();
                    random = rng.random();
                }
                Err(error) => {
                    let pause = backoff.next(&mut rng);
                    retry_at = self.seams.clock.now() + pause;
                    tracing::warn!(%error, retry_in_ms = pause.as_millis(), "certificate is not renewed; the present one goes on");
                }
            }
        }
    }

    /// Whether a rotation waits for this certificate: two roots are trusted, and the newer one, which is the last, is not
    /// its own.
    fn is_of_older_root(&self, identity: &Identity, trust: &TrustState) -> bool {
        let [_, .., newest] = trust.roots() else {
            return false;
        };
        let Some((leaf, extra)) = identity.chain().split_first() else {
            return false;
        };
        let domain = trust.trust_domain().clone();
        TrustState::new(domain, vec![newest.clone()], BTreeSet::new(), trust.revision()).is_ok_and(|newest| {
            verify_chain(leaf, extra, self.seams.clock.wall(), &newest, Usage::Client).is_err()
        })
    }

    /// Takes roots and evictions from the newest snapshot.
    fn take_trust(&self, identity: &LocalIdentity, snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>) {
        let Some(snapshot) = snapshots.borrow_and_update().clone() else {
            return;
        };
        let present = identity.trust.load();
        let same_roots = present
            .roots()
            .iter()
            .map(|root| root.as_ref())
            .eq(snapshot.roots.iter().map(Vec::as_slice));
        let denied: BTreeSet<Fingerprint> = snapshot
            .denied
            .iter()
            .copied()
            .map(Fingerprint::from_bytes)
            .collect();
        if (same_roots && *present.denied() == denied) || snapshot.roots.is_empty() {
            return;
        }
        let roots = snapshot.roots.iter().cloned();
        let denied = snapshot.denied.iter().copied();
        match trust_state(&snapshot.trust_domain, roots, denied, snapshot.version.revision) {
            Ok(trust) => {
                replace(&identity.trust, trust);
                self.changed.notify_one();
            }
            Err(error) => tracing::warn!(
                error,
                "the snapshot's roots are unusable; keeping the present ones"
            ),
        }
    }
}

fn replace(store: &TrustStore, trust: TrustState) {
    if let Err(error) = store.replace(trust) {
        tracing::error!(%error, "trust is not replaced; did this process move to another clusterset?");
    }
}

fn trust_state(
    trust_domain: &str,
    roots: impl Iterator<Item = Vec<u8>>,
    denied: impl Iterator<Item = [u8; 32]>,
    revision: u64,
) -> Result<TrustState, String> {
    let trust_domain = TrustDomain::parse(trust_domain).map_err(|error| error.to_string())?;
    let roots = roots.map(CertificateDer::from).collect();
    let denied = denied.map(Fingerprint::from_bytes).collect();
    TrustState::new(trust_domain, roots, denied, revision).map_err(|error| error.to_string())
}

fn fingerprint(line: &str) -> Option<Fingerprint> {
    let bytes = HEXLOWER.decode(line.trim().as_bytes()).ok()?;
    Some(Fingerprint::from_bytes(bytes.try_into().ok()?))
}
