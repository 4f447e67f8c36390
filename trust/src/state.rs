//! What verifiers trust: the roots, the evicted, and the store in which a new state replaces an old one.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::cert;
use crate::fingerprint::Fingerprint;
use crate::spiffe::TrustDomain;
use crate::verify::TrustError;

/// Most roots trusted at once: the old and the new one of a rotation, which is staged and one at a time.
pub const ROOTS_MAX: usize = 2;

/// What a verifier trusts at one revision: immutable, swapped whole.
#[derive(Debug, Clone)]
pub struct TrustState {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    denied: BTreeSet<Fingerprint>,
    revision: u64,
}

impl TrustState {
    /// A trust state of one root, or of two while a rotation is under way.
    ///
    /// # Errors
    /// [`TrustError::RootCount`] or [`TrustError::BadRoot`].
    pub fn new(
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        denied: BTreeSet<Fingerprint>,
        revision: u64,
    ) -> Result<Self, TrustError> {
        if roots.is_empty() || roots.len() > ROOTS_MAX {
            return Err(TrustError::RootCount { found: roots.len() });
        }
        let mut anchors = Vec::with_capacity(roots.len());
        for (at, root) in roots.iter().enumerate() {
            let bad = |reason: String| TrustError::BadRoot { at, reason };
            if !cert::is_ca(root).map_err(|error| bad(error.to_string()))? {
                return Err(bad("it is not a certificate authority".to_owned()));
            }
            let anchor = webpki::anchor_from_trusted_cert(root).map_err(|error| bad(error.to_string()))?;
            anchors.push(anchor.to_owned());
        }
        Ok(Self {
            trust_domain,
            roots,
            anchors,
            denied,
            revision,
        })
    }

    /// The clusterset's trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trusted roots: one, or two during a rotation.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The keys of denied intermediates: a key belongs to one cluster, so it alone names the evicted.
    #[must_use]
    pub const fn denied(&self) -> &BTreeSet<Fingerprint> {
        &self.denied
    }

    /// The revision, as the broker counts them.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    pub(crate) fn is_root(&self, cert: &CertificateDer<'_>) -> bool {
        self.roots.iter().any(|root| root.as_ref() == cert.as_ref())
    }
}

/// The trust state that all verifiers of a process share; swapping it takes effect at the next handshake.
#[derive(Debug)]
pub struct TrustStore {
    state: ArcSwap<TrustState>,
}

impl TrustStore {
    /// A store that begins with `state`.
    #[must_use]
    pub fn new(state: TrustState) -> Arc<Self> {
        Arc::new(Self {
            state: ArcSwap::from_pointee(state),
        })
    }

    /// The present state.
    #[must_use]
    pub fn load(&self) -> Arc<TrustState> {
        self.state.load_full()
    }

    /// Takes a new state. Connections that are already up are not touched: whoever keeps them asks
    /// [`crate::denied_in_chain`] for each after a swap, and closes those that it names.
    ///
    /// # Errors
    /// [`TrustError::TrustDomainChanged`]; the store then keeps what it has. Revisions may go back, since a restored
    /// clusterset begins a new incarnation: ordering them is the caller's part.
    pub fn replace(&self, state: TrustState) -> Result<(), TrustError> {
        let ours = self.state.load().trust_domain.clone();
        if state.trust_domain != ours {
            return Err(TrustError::TrustDomainChanged {
                found: state.trust_domain,
                ours,
            });
        }
        self.state.store(Arc::new(state));
        Ok(())
    }
}
