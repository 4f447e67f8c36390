//! Issuing: roots, cluster intermediates and leaves, all ECDSA P-256.
//!
//! Names, usages and CA bits come from the arguments alone; of a signing request only its public key is used, and
//! its signature, which proves that the requester holds the private key.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tombolo_clusterset::ClusterId;

use crate::cert::{self, CertError};
use crate::fingerprint::Fingerprint;
use crate::renew::Validity;
use crate::spiffe::{SpiffeError, SpiffeId, Subject, TrustDomain};

/// How far `not_before` lies in the past: clocks of two clusters may differ by minutes, and a fresh certificate must
/// work at once.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Life of a root: ten years; it is rotated by an operator, long before.
pub const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Life of a cluster's intermediate: the longest that an evicted cluster is trusted by a verifier out of contact with
/// every broker, and the longest that a cluster lives through without one (at least half of it).
pub const INTERMEDIATE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Life of a leaf within a cluster: hours, renewed at half.
pub const LEAF_TTL: Duration = Duration::from_secs(12 * 3600);

/// Life of a broker's leaf: only the brokers' own quorum renews it, so it must outlast a long loss of quorum.
pub const BROKER_LEAF_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Life of an operator's leaf.
pub const OPERATOR_LEAF_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// Longest signing request that is parsed, bytes: one with a P-256 key and a subject takes about 300.
pub const CSR_MAX: usize = 4096;

/// Bytes of an uncompressed P-256 point (SEC 1 §2.3.3).
const P256_POINT_LEN: usize = 65;

/// Why nothing was issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The signing request is longer than [`CSR_MAX`].
    #[error("signing request is {len} bytes long, at most {CSR_MAX} are accepted")]
    CsrTooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// The signing request cannot be parsed, or its signature is wrong.
    #[error("signing request is not acceptable ({reason}); make a new one")]
    Csr {
        /// What is wrong.
        reason: String,
    },
    /// The requested key is no P-256 key.
    #[error("signing request holds a key that is not ECDSA P-256; make one with a P-256 key")]
    KeyType,
    /// An intermediate was asked for an id outside its cluster.
    #[error("the intermediate of cluster {cluster} cannot issue {id}; ask that cluster's agent, or a broker")]
    OutsideCluster {
        /// The intermediate's cluster.
        cluster: ClusterId,
        /// The id that was asked for.
        id: SpiffeId,
    },
    /// A root was asked for a leaf that a cluster's own intermediate issues, or for another trust domain.
    #[error(
        "the root of {trust_domain} does not issue leaves for {id}; it signs its brokers and operators only"
    )]
    OutsideRoot {
        /// The root's trust domain.
        trust_domain: TrustDomain,
        /// The id that was asked for.
        id: SpiffeId,
    },
    /// The issuer is not valid now.
    #[error("the issuing certificate is not valid at this time; renew it, or set the clock right")]
    IssuerNotValid,
    /// The issuer's certificate and key do not fit, or it is no CA.
    #[error("issuing certificate cannot be used: {reason}")]
    Issuer {
        /// What is wrong.
        reason: String,
    },
    /// The trust domain cannot be made.
    #[error(transparent)]
    Name(#[from] SpiffeError),
    /// A certificate cannot be read.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The cryptographic library failed.
    #[error("cryptographic library failed: {reason}")]
    Crypto {
        /// What it said.
        reason: String,
    },
}

/// A certificate's serial number: positive and 16 bytes long (RFC 5280 §4.1.2.2 allows 20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A serial out of random bytes; 126 of their bits are kept.
    #[must_use]
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self(bytes)
    }
}

/// A fresh P-256 key and a signing request for it; draws entropy from the system. The request names nobody: whoever
/// signs it decides whom it names.
///
/// # Errors
/// [`IssueError::Crypto`] when the system has no entropy to give.
pub fn new_key_and_csr() -> Result<(PrivateKeyDer<'static>, CertificateSigningRequestDer<'static>), IssueError>
{
    let key = new_key()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(|error| crypto(&error))?;
    Ok((private_key(&key), csr.into()))
}

/// A root of the clusterset, with its key.
pub struct Root {
    trust_domain: TrustDomain,
    cert: CertificateDer<'static>,
    key: KeyPair,
}

impl Root {
    /// The first root of a clusterset: its key's hash completes the trust domain. Draws entropy from the system.
    ///
    /// # Errors
    /// When `clusterset` is no RFC 1123 label of at most 54 bytes.
    pub fn create(clusterset: &str, serial: Serial, now: SystemTime) -> Result<Self, IssueError> {
        let key = new_key()?;
        let trust_domain = TrustDomain::derive(clusterset, &spki_fingerprint(&key))?;
        Self::self_sign(trust_domain, key, serial, now)
    }

    /// A root with a key of its own for the same trust domain: the next one of a rotation. Draws entropy.
    ///
    /// # Errors
    /// [`IssueError::Crypto`].
    pub fn successor(&self, serial: Serial, now: SystemTime) -> Result<Self, IssueError> {
        Self::self_sign(self.trust_domain.clone(), new_key()?, serial, now)
    }

    /// A root that was stored: its certificate and its PKCS#8 key.
    ///
    /// # Errors
    /// When they do not fit together, or it is no CA.
    pub fn load(
        trust_domain: TrustDomain,
        cert: CertificateDer<'static>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<Self, IssueError> {
        let key = load_issuer(&cert, key)?;
        Ok(Self {
            trust_domain,
            cert,
            key,
        })
    }

    fn self_sign(
        trust_domain: TrustDomain,
        key: KeyPair,
        serial: Serial,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        // The key's hash keeps the names of two roots apart during a rotation. Names have 64 bytes (RFC 5280 A.1).
        let name = format!("Tombolo root {}", &spki_fingerprint(&key).to_string()[7..23]);
        let mut params = ca_params(&name, serial, BasicConstraints::Constrained(1));
        set_validity(&mut params, now, ROOT_TTL, None);
        let cert = params.self_signed(&key).map_err(|error| crypto(&error))?;
        Ok(Self {
            trust_domain,
            cert: cert.into(),
            key,
        })
    }

    /// Signs a cluster's intermediate: it names that cluster and can sign leaves only. It never outlives the root.
    ///
    /// # Errors
    /// [`IssueError`] when the request is not acceptable or the root is not valid now.
    pub fn issue_intermediate(
        &self,
        csr_der: &[u8],
        cluster: &ClusterId,
        serial: Serial,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let request = parse_csr(csr_der)?;
        let id = SpiffeId::cluster_intermediate(self.trust_domain.clone(), cluster.clone());
        let mut params = ca_params(cluster.as_str(), serial, BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![uri(&id)?];
        set_validity(&mut params, now, ttl, Some(self.validity_at(now)?));
        sign(params, &request, &self.cert, &self.key)
    }

    /// Signs the leaf of a broker or an operator. It never outlives the root. A broker sends this leaf and
    /// [`Root::cert`], so that a joining cluster finds the root that its token pins.
    ///
    /// # Errors
    /// [`IssueError::OutsideRoot`] for any other id; else as [`Root::issue_intermediate`].
    pub fn issue_leaf(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        serial: Serial,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let is_ours = matches!(id.subject(), Subject::Broker(_) | Subject::Operator(_));
        if !is_ours || id.trust_domain() != &self.trust_domain {
            return Err(IssueError::OutsideRoot {
                trust_domain: self.trust_domain.clone(),
                id: id.clone(),
            });
        }
        let request = parse_csr(csr_der)?;
        let mut params = leaf_params(id, serial)?;
        set_validity(&mut params, now, ttl, Some(self.validity_at(now)?));
        sign(params, &request, &self.cert, &self.key)
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root's certificate.
    #[must_use]
    pub const fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The fingerprint that join tokens pin.
    #[must_use]
    pub fn pin(&self) -> Fingerprint {
        spki_fingerprint(&self.key)
    }

    /// The key, PKCS#8: to be wrapped ([`crate::wrap`]) before it is stored.
    #[must_use]
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        private_key(&self.key)
    }

    fn validity_at(&self, now: SystemTime) -> Result<Validity, IssueError> {
        issuer_validity(&self.cert, now)
    }
}

/// A cluster's intermediate, with its key, as the cluster's agent holds it.
pub struct Intermediate {
    trust_domain: TrustDomain,
    cluster: ClusterId,
    cert: CertificateDer<'static>,
    key: KeyPair,
}

impl Intermediate {
    /// An intermediate that a broker signed, or that was stored; its certificate says whose it is.
    ///
    /// # Errors
    /// When key and certificate do not fit together, or it names no cluster.
    pub fn load(cert: CertificateDer<'static>, key: &PrivateKeyDer<'_>) -> Result<Self, IssueError> {
        let id = cert::spiffe_id(&cert)?;
        let Subject::Cluster(cluster) = id.subject().clone() else {
            return Err(IssueError::Issuer {
                reason: format!("it names {id}, which is not a cluster"),
            });
        };
        let key = load_issuer(&cert, key)?;
        Ok(Self {
            trust_domain: id.trust_domain().clone(),
            cluster,
            cert,
            key,
        })
    }

    /// Signs a leaf under this cluster. It never outlives the intermediate. The holder presents it followed by
    /// [`Intermediate::cert`].
    ///
    /// # Errors
    /// [`IssueError::OutsideCluster`] for any other id; else as [`Root::issue_intermediate`].
    pub fn issue_leaf(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        serial: Serial,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let is_leaf = !matches!(id.subject(), Subject::Cluster(_));
        if !is_leaf || !id.is_under_cluster(&self.cluster) || id.trust_domain() != &self.trust_domain {
            return Err(IssueError::OutsideCluster {
                cluster: self.cluster.clone(),
                id: id.clone(),
            });
        }
        let request = parse_csr(csr_der)?;
        let mut params = leaf_params(id, serial)?;
        set_validity(&mut params, now, ttl, Some(issuer_validity(&self.cert, now)?));
        sign(params, &request, &self.cert, &self.key)
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The cluster that it signs for.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Its certificate.
    #[must_use]
    pub const fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// When it is valid.
    ///
    /// # Errors
    /// When the certificate's times cannot be read.
    pub fn validity(&self) -> Result<Validity, CertError> {
        cert::validity(&self.cert)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Intermediate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intermediate")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

fn new_key() -> Result<KeyPair, IssueError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| crypto(&error))
}

fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

fn spki_fingerprint(key: &KeyPair) -> Fingerprint {
    Fingerprint::of_spki(&key.subject_public_key_info())
}

fn load_issuer(cert: &CertificateDer<'_>, key: &PrivateKeyDer<'_>) -> Result<KeyPair, IssueError> {
    let refuse = |reason: &str| IssueError::Issuer {
        reason: reason.to_owned(),
    };
    let key = KeyPair::from_der_and_sign_algo(key, &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| refuse("its key is no PKCS#8 ECDSA P-256 key"))?;
    if cert::fingerprint(cert)? != spki_fingerprint(&key) {
        return Err(refuse("its key belongs to another certificate"));
    }
    if !cert::is_ca(cert)? {
        return Err(refuse("it is not a certificate authority"));
    }
    Ok(key)
}

/// The request's public key, after its signature has been checked.
fn parse_csr(csr_der: &[u8]) -> Result<rcgen::PublicKey, IssueError> {
    if csr_der.len() > CSR_MAX {
        return Err(IssueError::CsrTooLong { len: csr_der.len() });
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
        .map_err(|error| IssueError::Csr {
            reason: error.to_string(),
        })?;
    let key = request.public_key;
    let is_p256 = *key.algorithm() == PKCS_ECDSA_P256_SHA256
        && key.der_bytes().len() == P256_POINT_LEN
        && key.der_bytes().first() == Some(&4);
    if is_p256 {
        Ok(key)
    } else {
        Err(IssueError::KeyType)
    }
}

fn ca_params(name: &str, serial: Serial, constraint: BasicConstraints) -> CertificateParams {
    let mut params = base_params(name, serial);
    params.is_ca = IsCa::Ca(constraint);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Every leaf both dials and is dialled, so each has both extended key usages.
fn leaf_params(id: &SpiffeId, serial: Serial) -> Result<CertificateParams, IssueError> {
    let mut params = base_params("Tombolo leaf", serial);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.subject_alt_names = vec![uri(id)?];
    Ok(params)
}

fn base_params(name: &str, serial: Serial) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    params.use_authority_key_identifier_extension = true;
    params
}

fn uri(id: &SpiffeId) -> Result<SanType, IssueError> {
    let text = id
        .to_string()
        .try_into()
        .map_err(|error: rcgen::Error| crypto(&error))?;
    Ok(SanType::URI(text))
}

/// From [`BACKDATE`] ago until `ttl` from now ([`ROOT_TTL`] at most), within the issuer's own validity.
fn set_validity(params: &mut CertificateParams, now: SystemTime, ttl: Duration, issuer: Option<Validity>) {
    let mut not_before = now.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut not_after = now + ttl.min(ROOT_TTL);
    if let Some(issuer) = issuer {
        not_before = not_before.max(issuer.not_before);
        not_after = not_after.min(issuer.not_after);
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch
        + not_before
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
    params.not_after = epoch
        + not_after
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
}

fn issuer_validity(cert: &CertificateDer<'_>, now: SystemTime) -> Result<Validity, IssueError> {
    let validity = cert::validity(cert)?;
    if now < validity.not_before || validity.is_expired(now) {
        return Err(IssueError::IssuerNotValid);
    }
    Ok(validity)
}

fn sign(
    params: CertificateParams,
    public_key: &rcgen::PublicKey,
    issuer_cert: &CertificateDer<'_>,
    issuer_key: &KeyPair,
) -> Result<CertificateDer<'static>, IssueError> {
    let issuer = Issuer::from_ca_cert_der(issuer_cert, issuer_key).map_err(|error| IssueError::Issuer {
        reason: error.to_string(),
    })?;
    let cert = params
        .signed_by(public_key, &issuer)
        .map_err(|error| crypto(&error))?;
    Ok(cert.into())
}

fn crypto(error: &rcgen::Error) -> IssueError {
    IssueError::Crypto {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
