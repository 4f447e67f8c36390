//! Certificates and keys as PEM text (RFC 7468).

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Most certificates that are read from one PEM text: a chain and the roots of a rotation take three.
pub const PEM_CERTS_MAX: usize = 16;

/// Most keys that are read from one PEM text: the present one and the one before, see `shell::files`.
pub const PEM_KEYS_MAX: usize = 4;

/// Characters per line (RFC 7468 §2).
const LINE_LEN: usize = 64;

/// Why a PEM text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// No section of the kind that is wanted.
    #[error("it holds no {wanted}; expected a line '-----BEGIN {label}-----'")]
    None {
        /// What was wanted.
        wanted: &'static str,
        /// The label that its section has.
        label: &'static str,
    },
    /// Too many sections.
    #[error("it holds more than {max} {wanted}s")]
    TooMany {
        /// What was wanted.
        wanted: &'static str,
        /// How many are read.
        max: usize,
    },
    /// A section is damaged.
    #[error("{wanted} number {number} is damaged ({reason}); copy the file again")]
    Damaged {
        /// What was wanted.
        wanted: &'static str,
        /// Which one, from 1.
        number: usize,
        /// What the parser said.
        reason: String,
    },
}

/// The certificates of a PEM text, in their order; at least one.
///
/// # Errors
/// [`PemError`].
pub fn certs_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    sections(pem, "certificate", "CERTIFICATE", PEM_CERTS_MAX)
}

/// The private keys of a PEM text, in their order; at least one.
///
/// # Errors
/// [`PemError`]; it never repeats key material.
pub fn keys_from_pem(pem: &[u8]) -> Result<Vec<PrivateKeyDer<'static>>, PemError> {
    sections(pem, "private key", "PRIVATE KEY", PEM_KEYS_MAX)
}

/// Certificates as PEM text.
#[must_use]
pub fn certs_to_pem<'a>(certs: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    certs
        .into_iter()
        .map(|cert| section("CERTIFICATE", cert.as_ref()))
        .collect()
}

/// A private key as PEM text, under the label of its encoding.
#[must_use]
pub fn key_to_pem(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    section(label, key.secret_der())
}

fn sections<T: PemObject>(
    pem: &[u8],
    wanted: &'static str,
    label: &'static str,
    max: usize,
) -> Result<Vec<T>, PemError> {
    let mut found = Vec::new();
    for (at, item) in T::pem_slice_iter(pem).enumerate() {
        if at == max {
            return Err(PemError::TooMany { wanted, max });
        }
        let damaged = |error| PemError::Damaged {
            wanted,
            number: at + 1,
            reason: describe(&error),
        };
        found.push(item.map_err(damaged)?);
    }
    if found.is_empty() {
        Err(PemError::None { wanted, label })
    } else {
        Ok(found)
    }
}

/// What is wrong, without the bytes that some of the parser's errors carry: they may be a key's.
fn describe(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::MissingSectionEnd { .. } => "its END line is missing",
        Error::IllegalSectionStart { .. } => "its BEGIN line is malformed",
        Error::Base64Decode(_) => "its base64 is malformed",
        _ => "it cannot be read",
    }
    .to_owned()
}

fn section(label: &str, der: &[u8]) -> String {
    let encoded = data_encoding::BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for (at, character) in encoded.chars().enumerate() {
        if at != 0 && at % LINE_LEN == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str(&format!("\n-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Cluster, new_root};

    #[test]
    fn chains_and_keys_come_back_from_pem() {
        let leaf = Cluster::new(&new_root(), "west").leaf("/cluster/west/role/dns");
        let text = certs_to_pem(&leaf.chain);
        assert_eq!(certs_from_pem(text.as_bytes()).unwrap(), leaf.chain);
        assert!(text.lines().all(|line| line.len() <= LINE_LEN), "{text}");
        let text = key_to_pem(&leaf.key);
        assert_eq!(keys_from_pem(text.as_bytes()).unwrap(), [leaf.key.clone_key()]);
        // Another implementation reads it too.
        let read = rcgen::KeyPair::from_pem(&text).unwrap();
        assert_eq!(read.serialized_der(), leaf.key.secret_der());
    }

    #[test]
    fn each_unusable_text_is_refused_without_its_bytes() {
        let table = [
            ("", "holds no private key"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "holds no private key",
            ),
            ("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n", "END line is missing"),
            (
                "-----BEGIN PRIVATE KEY-----\nc2Vj!cmV0\n-----END PRIVATE KEY-----\n",
                "base64 is malformed",
            ),
        ];
        for (text, expected) in table {
            let error = keys_from_pem(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
            assert!(!error.contains("c2Vj"), "{error:?} repeats the key");
        }
        let five = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".repeat(PEM_KEYS_MAX + 1);
        let error = keys_from_pem(five.as_bytes()).unwrap_err();
        assert_eq!(
            error,
            PemError::TooMany {
                wanted: "private key",
                max: PEM_KEYS_MAX
            }
        );
    }
}
