//! The clusterset's certificate authority: the root key that the group replicates, unwrapped with this broker's
//! key-encryption key, signs; the log carries what was signed.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use parking_lot::Mutex;
use tombolo_clusterset::ClusterId;
use tombolo_daemon::seam::clock::Clock;
use tombolo_trust::issue::{INTERMEDIATE_TTL, Root, Serial};
use tombolo_trust::wrap::{Kek, WrapError, unwrap, wrap};
use tombolo_trust::{
    CertError, CertificateDer, Fingerprint, IssueError, PrivateKeyDer, SpiffeId, TrustError, TrustState, cert,
};

use crate::command::{Issued, RootRecord};
use crate::state::Trust;

/// Why the authority cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key-encryption key of this broker is not the group's.
    #[error("the root key: {0}")]
    Wrap(#[from] WrapError),
    /// The request is not acceptable, or the library failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// What was signed cannot be read back.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The replicated trust is unusable.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The key is in a form that no build of Tombolo writes.
    #[error("the root key is not PKCS#8: {0}; the store is damaged, restore a back-up")]
    KeyForm(&'static str),
    /// The operating system gives no entropy.
    #[error("no random bytes could be had from the operating system; check the host")]
    Entropy,
}

/// Signs in the clusterset's name.
#[derive(Debug)]
pub struct Authority {
    kek: Kek,
    clock: Arc<dyn Clock>,
    /// The root that was unwrapped last.
    unwrapped: Mutex<Option<(Fingerprint, Arc<Root>)>>,
}

impl Authority {
    /// An authority with this broker's key-encryption key.
    #[must_use]
    pub fn new(kek: Kek, clock: Arc<dyn Clock>) -> Self {
        Self {
            kek,
            clock,
            unwrapped: Mutex::new(None),
        }
    }

    /// Signs an intermediate for `cluster` over the key of a PKCS#10 request.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`] when the request is not acceptable.
    pub fn sign_intermediate(
        &self,
        trust: &Trust,
        cluster: &ClusterId,
        csr: &[u8],
    ) -> Result<Issued, AuthorityError> {
        let root = self.root(trust)?;
        let signed = root.issue_intermediate(csr, cluster, serial()?, self.clock.wall(), INTERMEDIATE_TTL)?;
        Ok(Issued {
            key: cert::fingerprint(&signed)?,
            root: root.pin(),
            not_after_ms: unix_ms(cert::validity(&signed)?.not_after),
            certificate: Bytes::copy_from_slice(&signed),
        })
    }

    /// Signs a broker's or an operator's leaf.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`] when the request is not acceptable.
    pub fn sign_leaf(
        &self,
        trust: &Trust,
        id: &SpiffeId,
        csr: &[u8],
        ttl: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        Ok(self
            .root(trust)?
            .issue_leaf(csr, id, serial()?, self.clock.wall(), ttl)?)
    }

    /// The root that signs.
    ///
    /// # Errors
    /// [`AuthorityError::Wrap`] when this broker's key-encryption key is not the group's.
    pub fn root(&self, trust: &Trust) -> Result<Arc<Root>, AuthorityError> {
        let mut unwrapped = self.unwrapped.lock();
        if let Some((key, root)) = &*unwrapped
            && *key == trust.signing.key
        {
            return Ok(Arc::clone(root));
        }
        let key = unwrap(&trust.signing.wrapped, &self.kek)?;
        let key = PrivateKeyDer::try_from(key).map_err(AuthorityError::KeyForm)?;
        let certificate = CertificateDer::from(trust.signing.certificate.to_vec());
        let root = Arc::new(Root::load(trust.trust_domain.clone(), certificate, &key)?);
        *unwrapped = Some((trust.signing.key, Arc::clone(&root)));
        Ok(root)
    }

    /// A new root of the same trust domain, for a rotation.
    ///
    /// # Errors
    /// When the library fails.
    pub fn successor(&self, trust: &Trust) -> Result<RootRecord, AuthorityError> {
        let root = self.root(trust)?.successor(serial()?, self.clock.wall())?;
        wrap_root(&root, &self.kek)
    }
}

/// A root as the group stores it.
///
/// # Errors
/// When the library fails.
pub fn wrap_root(root: &Root, kek: &Kek) -> Result<RootRecord, AuthorityError> {
    let wrapped = wrap(root.key_der().secret_der(), kek, random()?)?;
    Ok(RootRecord {
        certificate: Bytes::copy_from_slice(root.cert()),
        key: root.pin(),
        wrapped: wrapped.into(),
    })
}

/// What verifiers of this process trust.
///
/// # Errors
/// When a root is no root.
pub fn trust_state(trust: &Trust) -> Result<TrustState, TrustError> {
    let roots = trust
        .roots()
        .iter()
        .map(|root| CertificateDer::from(root.certificate.to_vec()))
        .collect();
    let denied = trust.denied.iter().map(|denied| denied.key).collect();
    TrustState::new(trust.trust_domain.clone(), roots, denied, trust.revision)
}

/// A serial number for a certificate.
///
/// # Errors
/// [`AuthorityError::Entropy`].
pub fn serial() -> Result<Serial, AuthorityError> {
    Ok(Serial::from_random(random()?))
}

/// Secret bytes, from the cryptographic library.
///
/// # Errors
/// [`AuthorityError::Entropy`].
pub fn random<const N: usize>() -> Result<[u8; N], AuthorityError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| AuthorityError::Entropy)?;
    Ok(bytes)
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
