//! What this crate reads from a certificate: its SPIFFE id, its key's fingerprint, its validity.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::fingerprint::Fingerprint;
use crate::renew::Validity;
use crate::spiffe::{SpiffeError, SpiffeId};

/// Why a certificate's contents cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// The bytes are no X.509 certificate.
    #[error("certificate cannot be parsed ({reason}); it is not DER-encoded X.509, or it was cut short")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// The peer or the file presents no certificate.
    #[error("no certificate was presented; the peer must authenticate with its cluster's certificate")]
    Missing,
    /// No URI SAN, or more than one.
    #[error(
        "certificate has {count} URI names; a SPIFFE certificate has exactly one (X509-SVID §2): reissue it"
    )]
    NotOneUri {
        /// How many it has.
        count: usize,
    },
    /// The URI SAN is no SPIFFE id of a clusterset.
    #[error("certificate names no identity: {0}")]
    Id(#[from] SpiffeError),
}

/// The certificate's one SPIFFE id.
///
/// # Errors
/// When it cannot be parsed or does not carry exactly one URI SAN.
pub fn spiffe_id(cert: &CertificateDer<'_>) -> Result<SpiffeId, CertError> {
    let parsed = parse(cert)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| malformed(&error))?;
    let names = names
        .map(|san| san.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(SpiffeId::parse(uri)?),
        (first, more) => Err(CertError::NotOneUri {
            count: usize::from(first.is_some()) + more,
        }),
    }
}

/// The fingerprint of the certificate's public key.
///
/// # Errors
/// When the certificate cannot be parsed.
pub fn fingerprint(cert: &CertificateDer<'_>) -> Result<Fingerprint, CertError> {
    Ok(Fingerprint::of_spki(parse(cert)?.public_key().raw))
}

/// When the certificate is valid.
///
/// # Errors
/// When the certificate cannot be parsed.
pub fn validity(cert: &CertificateDer<'_>) -> Result<Validity, CertError> {
    let parsed = parse(cert)?;
    let time = |seconds: i64| {
        u64::try_from(seconds)
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .ok_or_else(|| CertError::Malformed {
                reason: "a validity time lies before 1970".to_owned(),
            })
    };
    Ok(Validity {
        not_before: time(parsed.validity().not_before.timestamp())?,
        not_after: time(parsed.validity().not_after.timestamp())?,
    })
}

/// Whose connection it is: the SPIFFE id of the first certificate of a chain that a verifier of this crate has
/// already accepted (`peer_certificates()` of the TLS library). It checks nothing itself.
///
/// # Errors
/// [`CertError::Missing`] when the peer presented none, as a joining cluster does.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<SpiffeId, CertError> {
    spiffe_id(certs.first().ok_or(CertError::Missing)?)
}

/// Whether the certificate may sign others (basic constraints).
pub(crate) fn is_ca(cert: &CertificateDer<'_>) -> Result<bool, CertError> {
    Ok(parse(cert)?.is_ca())
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertError> {
    let (rest, parsed) = X509Certificate::from_der(cert.as_ref()).map_err(|error| malformed(&error))?;
    if rest.is_empty() {
        Ok(parsed)
    } else {
        Err(CertError::Malformed {
            reason: format!("{} bytes follow it", rest.len()),
        })
    }
}

fn malformed(error: &dyn std::fmt::Display) -> CertError {
    CertError::Malformed {
        reason: error.to_string(),
    }
}
