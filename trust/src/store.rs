//! A process's own identity: its chain and key, swapped live on renewal.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::cert::{self, CertError};
use crate::renew::Validity;
use crate::spiffe::SpiffeId;

/// Why a chain and a key are no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The chain is empty, or its leaf cannot be used.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The key cannot be used.
    #[error("private key cannot be used ({reason}); it must be an unencrypted PKCS#8 ECDSA key")]
    Key {
        /// What the TLS library said.
        reason: String,
    },
    /// The key belongs to another certificate.
    #[error("private key does not belong to the certificate of {id}; issue a new certificate for this key")]
    Mismatch {
        /// Whom the certificate names.
        id: SpiffeId,
    },
}

/// A chain with its key: the leaf, then its intermediate (clusters) or the root (brokers), and who that is.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    certified: Arc<CertifiedKey>,
    id: SpiffeId,
    validity: Validity,
}

impl Identity {
    /// The identity of `chain` (leaf first) with the leaf's `key`.
    ///
    /// # Errors
    /// [`IdentityError`]; whether others trust the chain is not asked.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(CertError::Missing)?;
        let id = cert::spiffe_id(leaf)?;
        let validity = cert::validity(leaf)?;
        let key = any_supported_type(key).map_err(|error| IdentityError::Key {
            reason: error.to_string(),
        })?;
        let certified = CertifiedKey::new(chain.clone(), key);
        certified
            .keys_match()
            .map_err(|_| IdentityError::Mismatch { id: id.clone() })?;
        Ok(Self {
            chain,
            certified: Arc::new(certified),
            id,
            validity,
        })
    }

    /// Whose identity it is.
    #[must_use]
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the leaf is valid.
    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// The chain, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// The identity that a process presents, on both sides of its connections. [`CertStore::replace`] takes effect at the
/// next handshake; connections that are up keep the identity they began with.
#[derive(Debug)]
pub struct CertStore {
    current: ArcSwap<Identity>,
}

impl CertStore {
    /// A store that begins with `identity`.
    #[must_use]
    pub fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(identity),
        })
    }

    /// The present identity.
    #[must_use]
    pub fn load(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    /// Takes a renewed identity.
    pub fn replace(&self, identity: Identity) {
        self.current.store(Arc::new(identity));
    }
}

impl ResolvesServerCert for CertStore {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().certified))
    }
}

impl ResolvesClientCert for CertStore {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Cluster, new_root, now};
    use crate::issue::LEAF_TTL;

    #[test]
    fn an_identity_needs_a_chain_and_its_own_key() {
        let west = Cluster::new(&new_root(), "west");
        let (leaf, other) = (
            west.leaf("/cluster/west/role/dns"),
            west.leaf("/cluster/west/role/dns"),
        );
        let identity = leaf.identity();
        assert!(identity.id().to_string().ends_with("/cluster/west/role/dns"));
        assert_eq!(identity.validity().not_after, now() + LEAF_TTL);
        let error = Identity::new(Vec::new(), &leaf.key).unwrap_err();
        assert_eq!(error, IdentityError::Cert(CertError::Missing));
        let error = Identity::new(leaf.chain.clone(), &other.key).unwrap_err();
        assert_eq!(
            error,
            IdentityError::Mismatch {
                id: identity.id().clone()
            }
        );
        let garbage = PrivateKeyDer::Pkcs8(vec![1, 2, 3].into());
        let error = Identity::new(leaf.chain, &garbage).unwrap_err();
        assert!(matches!(error, IdentityError::Key { .. }), "{error:?}");
    }

    #[test]
    fn a_replaced_identity_is_the_next_one_presented() {
        let west = Cluster::new(&new_root(), "west");
        let (first, second) = (
            west.leaf("/cluster/west/role/dns"),
            west.leaf("/cluster/west/role/dns"),
        );
        let store = CertStore::new(first.identity());
        assert_eq!(
            ResolvesClientCert::resolve(&*store, &[], &[]).unwrap().cert,
            first.chain
        );
        store.replace(second.identity());
        assert_eq!(
            ResolvesClientCert::resolve(&*store, &[], &[]).unwrap().cert,
            second.chain
        );
        assert_eq!(store.load().chain(), second.chain);
    }
}
