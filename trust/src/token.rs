//! Join tokens: what an operator hands to a cluster so that it may join once.
//!
//! ```text
//! tmb1.<base64url, unpadded, of:
//!   u16 length of the whole payload, big endian
//!   [8] token id  [32] secret  [32] SHA-256 of the root's public key
//!   u8 length + trust domain
//!   u8 length + cluster id
//!   [4] checksum: the first bytes of the SHA-256 of all before it>
//! ```
//! The number after `tmb` is the version of the format. The pin authenticates the broker to the cluster, the secret
//! the cluster to the broker; the broker stores only the secret's hash.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::BASE64URL_NOPAD;
use tombolo_clusterset::{ClusterId, NameError};

use crate::fingerprint::{Fingerprint, sha256};
use crate::spiffe::{SpiffeError, TrustDomain};

/// How a token of this version begins.
pub const TOKEN_PREFIX: &str = "tmb1.";

/// Longest token text, bytes: two labels of 63 bytes make 272; anything longer is not a token and is not decoded.
pub const TOKEN_MAX: usize = 300;

const ID_LEN: usize = 8;
const SECRET_LEN: usize = 32;
const PIN_LEN: usize = 32;
const CHECKSUM_LEN: usize = 4;

/// Random bytes that [`JoinToken::mint`] wants: the token's id and its secret.
pub const MINT_RANDOM_LEN: usize = ID_LEN + SECRET_LEN;

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing was given.
    #[error("join token is empty; create one with `tombolo token create`")]
    Empty,
    /// The text does not begin like a token.
    #[error(
        "this is not a join token: it must begin with '{TOKEN_PREFIX}'; copy the whole line that `tombolo token create` printed"
    )]
    Prefix,
    /// A token of another version of the format.
    #[error(
        "join token has format version {found:?}, this build reads version 1; use a tombolo of the broker's version"
    )]
    Version {
        /// The version as found.
        found: String,
    },
    /// The text is longer than [`TOKEN_MAX`].
    #[error(
        "join token is {len} bytes long, at most {TOKEN_MAX} are possible; copy it again, without what follows it"
    )]
    TooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// A character that base64url does not have.
    #[error(
        "join token has an invalid character at position {at}; copy it again, without spaces or line breaks"
    )]
    Encoding {
        /// Its byte offset in the text.
        at: usize,
    },
    /// The end is missing.
    #[error("join token is cut short: {have} bytes of {want} are there; copy the whole line")]
    Truncated {
        /// Payload bytes that are there.
        have: usize,
        /// Payload bytes that there should be, as far as known.
        want: usize,
    },
    /// More than one token, or text glued to its end.
    #[error("join token has {extra} bytes after its end; copy it again, without what follows it")]
    Trailing {
        /// Surplus payload bytes.
        extra: usize,
    },
    /// A character was changed.
    #[error("join token is damaged: its checksum does not match; copy it again")]
    Checksum,
    /// The checksum matches, but the lengths inside do not add up: it was not made by `tombolo`.
    #[error("join token is malformed inside; create a new one with `tombolo token create`")]
    Layout,
    /// The trust domain inside is invalid.
    #[error("join token names an invalid trust domain: {0}")]
    TrustDomain(#[from] SpiffeError),
    /// The cluster id inside is invalid.
    #[error("join token names an invalid cluster: {0}")]
    Cluster(#[from] NameError),
}

/// Names a token in the broker's table and in `tombolo token list`; no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; ID_LEN]);

impl TokenId {
    /// An id that was stored or received as bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; ID_LEN]) -> Self {
        Self(bytes)
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; ID_LEN] {
        &self.0
    }

    /// Parses the 16 hexadecimal digits that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

/// The hash of a token's secret, as the broker stores it.
///
/// Compare with [`SecretHash::matches`], which takes the same time whatever the bytes are; there is no `==`.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of the secret of token `id`; what a joining cluster presents is hashed with this and compared.
    #[must_use]
    pub fn of(id: &TokenId, secret: &[u8]) -> Self {
        Self(sha256(&[b"tombolo join token 1\0", &id.0, secret]))
    }

    /// A hash that was stored as bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash's bytes, to store.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are equal, in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

/// A join token. Its text form ([`JoinToken::to_text`]) and [`JoinToken::secret`] are secret; `Debug` shows neither.
#[derive(Clone)]
pub struct JoinToken {
    id: TokenId,
    secret: [u8; SECRET_LEN],
    root_pin: Fingerprint,
    trust_domain: TrustDomain,
    cluster: ClusterId,
}

impl JoinToken {
    /// Makes a token for `cluster` out of bytes that a cryptographic generator filled.
    #[must_use]
    pub fn mint(
        random: [u8; MINT_RANDOM_LEN],
        trust_domain: TrustDomain,
        root_pin: Fingerprint,
        cluster: ClusterId,
    ) -> Self {
        let mut id = [0; ID_LEN];
        let mut secret = [0; SECRET_LEN];
        id.copy_from_slice(&random[..ID_LEN]);
        secret.copy_from_slice(&random[ID_LEN..]);
        Self {
            id: TokenId(id),
            secret,
            root_pin,
            trust_domain,
            cluster,
        }
    }

    /// Parses the text form. White space around it is ignored, since it comes from a terminal or a file.
    ///
    /// # Errors
    /// [`TokenError`] says what is wrong and what to do; it never repeats the token.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > TOKEN_MAX {
            return Err(TokenError::TooLong { len: text.len() });
        }
        let encoded = after_prefix(text)?;
        let payload = decode(encoded)?;
        Self::from_payload(&payload)
    }

    /// The text form: secret, to be shown once.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut payload = vec![0, 0];
        payload.extend_from_slice(&self.id.0);
        payload.extend_from_slice(&self.secret);
        payload.extend_from_slice(self.root_pin.as_bytes());
        for name in [self.trust_domain.as_str(), self.cluster.as_str()] {
            // Both are labels: 63 bytes at most, by their types.
            payload.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            payload.extend_from_slice(name.as_bytes());
        }
        let len = u16::try_from(payload.len() + CHECKSUM_LEN).unwrap_or(u16::MAX);
        payload[..2].copy_from_slice(&len.to_be_bytes());
        let checksum = sha256(&[&payload]);
        payload.extend_from_slice(&checksum[..CHECKSUM_LEN]);
        format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&payload))
    }

    /// The token's id: no secret.
    #[must_use]
    pub const fn id(&self) -> TokenId {
        self.id
    }

    /// What the cluster presents to the broker, and only inside the pinned connection.
    #[must_use]
    pub const fn secret(&self) -> &[u8; SECRET_LEN] {
        &self.secret
    }

    /// What the broker stores.
    #[must_use]
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash::of(&self.id, &self.secret)
    }

    /// The root's key, by which the cluster recognises the broker.
    #[must_use]
    pub const fn root_pin(&self) -> Fingerprint {
        self.root_pin
    }

    /// The clusterset's trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The cluster that may join with it.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    fn from_payload(payload: &[u8]) -> Result<Self, TokenError> {
        /// The shortest payload there can be, until its own length is known.
        const SMALLEST: usize = 2 + ID_LEN + SECRET_LEN + PIN_LEN + 2 + 2 + CHECKSUM_LEN;
        let have = payload.len();
        let [high, low, ..] = *payload else {
            return Err(TokenError::Truncated { have, want: SMALLEST });
        };
        let want = usize::from(u16::from_be_bytes([high, low]));
        if have < want {
            return Err(TokenError::Truncated { have, want });
        }
        if have > want {
            return Err(TokenError::Trailing { extra: have - want });
        }
        let (body, checksum) = payload
            .split_last_chunk::<CHECKSUM_LEN>()
            .ok_or(TokenError::Layout)?;
        if sha256(&[body])[..CHECKSUM_LEN] != checksum[..] {
            return Err(TokenError::Checksum);
        }
        let body = body.get(2..).ok_or(TokenError::Layout)?;
        let (id, body) = body.split_first_chunk::<ID_LEN>().ok_or(TokenError::Layout)?;
        let (secret, body) = body.split_first_chunk::<SECRET_LEN>().ok_or(TokenError::Layout)?;
        let (pin, body) = body.split_first_chunk::<PIN_LEN>().ok_or(TokenError::Layout)?;
        let (trust_domain, body) = take_name(body)?;
        let (cluster, body) = take_name(body)?;
        if !body.is_empty() {
            return Err(TokenError::Layout);
        }
        Ok(Self {
            id: TokenId(*id),
            secret: *secret,
            root_pin: Fingerprint::from_bytes(*pin),
            trust_domain: TrustDomain::parse(trust_domain)?,
            cluster: ClusterId::parse(cluster)?,
        })
    }
}

/// What follows the prefix, or whether it is another version, or no token at all.
fn after_prefix(text: &str) -> Result<&str, TokenError> {
    if let Some(encoded) = text.strip_prefix(TOKEN_PREFIX) {
        return Ok(encoded);
    }
    match text.strip_prefix("tmb").and_then(|rest| rest.split_once('.')) {
        Some((found, _))
            if !found.is_empty() && found.len() <= 3 && found.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Err(TokenError::Version {
                found: found.to_owned(),
            })
        }
        _ => Err(TokenError::Prefix),
    }
}

fn decode(encoded: &str) -> Result<Vec<u8>, TokenError> {
    BASE64URL_NOPAD
        .decode(encoded.as_bytes())
        .map_err(|error| match error.kind {
            // A length that no encoding has: the end is missing. What is known of it is what three quarters decode to.
            data_encoding::DecodeKind::Length => {
                let have = encoded.len() * 3 / 4;
                TokenError::Truncated { have, want: have + 1 }
            }
            // Set bits that the last character cannot carry: the same.
            data_encoding::DecodeKind::Trailing => {
                let have = encoded.len() * 3 / 4;
                TokenError::Truncated { have, want: have + 1 }
            }
            _ => TokenError::Encoding {
                at: TOKEN_PREFIX.len() + error.position,
            },
        })
}

/// A length byte and that many bytes of text.
fn take_name(bytes: &[u8]) -> Result<(&str, &[u8]), TokenError> {
    let (len, rest) = bytes.split_first().ok_or(TokenError::Layout)?;
    let (name, rest) = rest
        .split_at_checked(usize::from(*len))
        .ok_or(TokenError::Layout)?;
    Ok((std::str::from_utf8(name).map_err(|_| TokenError::Layout)?, rest))
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("trust_domain", &self.trust_domain)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
