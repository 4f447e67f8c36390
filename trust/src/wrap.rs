//! Keys at rest: AES-256-GCM under a key from a file that each broker holds.
//!
//! ```text
//! "tmbk" | version 1 | nonce [12] | ciphertext | tag [16]
//! ```
//! Magic and version are authenticated too.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

const HEADER: &[u8; 5] = b"tmbk\x01";

/// Longest key that is wrapped, bytes: a PKCS#8 P-256 key takes about 140, an RSA 4096 key 2,400.
pub const WRAPPED_KEY_MAX: usize = 8192;

/// Bytes of a key-encryption key.
pub const KEK_LEN: usize = 32;

/// Why a key was not wrapped or unwrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// The file holds no 32-byte key.
    #[error(
        "key file must hold 32 random bytes, raw or as 64 hexadecimal digits; make one with `openssl rand -hex 32`"
    )]
    Kek,
    /// The plaintext is longer than [`WRAPPED_KEY_MAX`].
    #[error("{len} bytes are not a private key; at most {WRAPPED_KEY_MAX} are wrapped")]
    TooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// The bytes are no wrapped key of a known version.
    #[error("stored key is not in the known format; the store is damaged, or written by a newer version")]
    Format,
    /// Authentication failed.
    #[error(
        "stored key cannot be unwrapped: the key file is not the one it was wrapped with, or the store is damaged; give the broker its own key file"
    )]
    WrongKey,
    /// The cryptographic library failed.
    #[error("cryptographic library could not encrypt the key")]
    Crypto,
}

/// A key-encryption key.
pub struct Kek(LessSafeKey);

impl Kek {
    /// The key out of its 32 bytes.
    ///
    /// # Errors
    /// [`WrapError::Crypto`] when the library refuses it.
    pub fn new(bytes: &[u8; KEK_LEN]) -> Result<Self, WrapError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| WrapError::Crypto)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// The key out of a file's contents: 32 raw bytes, or 64 hexadecimal digits with white space around them.
    ///
    /// # Errors
    /// [`WrapError::Kek`] when it is neither.
    pub fn from_file_contents(contents: &[u8]) -> Result<Self, WrapError> {
        if let Ok(raw) = contents.try_into() {
            return Self::new(raw);
        }
        let decoded = data_encoding::HEXLOWER_PERMISSIVE
            .decode(contents.trim_ascii())
            .map_err(|_| WrapError::Kek)?;
        Self::new(decoded.as_slice().try_into().map_err(|_| WrapError::Kek)?)
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(…)")
    }
}

/// Wraps `key`. `nonce` must be random and never be used twice with one `kek`.
///
/// # Errors
/// [`WrapError::TooLong`].
pub fn wrap(key: &[u8], kek: &Kek, nonce: [u8; NONCE_LEN]) -> Result<Vec<u8>, WrapError> {
    if key.len() > WRAPPED_KEY_MAX {
        return Err(WrapError::TooLong { len: key.len() });
    }
    let mut sealed = key.to_vec();
    kek.0
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(HEADER),
            &mut sealed,
        )
        .map_err(|_| WrapError::Crypto)?;
    Ok([&HEADER[..], &nonce, &sealed].concat())
}

/// The key that [`wrap`] wrapped.
///
/// # Errors
/// [`WrapError::Format`] or [`WrapError::WrongKey`].
pub fn unwrap(wrapped: &[u8], kek: &Kek) -> Result<Vec<u8>, WrapError> {
    let body = wrapped.strip_prefix(HEADER).ok_or(WrapError::Format)?;
    let (nonce, sealed) = body.split_first_chunk::<NONCE_LEN>().ok_or(WrapError::Format)?;
    if sealed.len() > WRAPPED_KEY_MAX + AES_256_GCM.tag_len() {
        return Err(WrapError::Format);
    }
    let mut plain = sealed.to_vec();
    let len = kek
        .0
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(HEADER),
            &mut plain,
        )
        .map_err(|_| WrapError::WrongKey)?
        .len();
    plain.truncate(len);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek(byte: u8) -> Kek {
        Kek::new(&[byte; KEK_LEN]).unwrap()
    }

    #[test]
    fn unwraps_what_it_wrapped_and_hides_it() {
        let wrapped = wrap(b"the root key", &kek(1), [9; NONCE_LEN]).unwrap();
        assert!(!wrapped.windows(4).any(|window| window == b"root"));
        assert_eq!(unwrap(&wrapped, &kek(1)).unwrap(), b"the root key");
    }

    #[test]
    fn refuses_another_key_and_every_change() {
        let wrapped = wrap(b"the root key", &kek(1), [9; NONCE_LEN]).unwrap();
        assert_eq!(unwrap(&wrapped, &kek(2)), Err(WrapError::WrongKey));
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert!(unwrap(&changed, &kek(1)).is_err(), "byte {at} changed");
            assert!(unwrap(&wrapped[..at], &kek(1)).is_err(), "cut at {at}");
        }
        assert_eq!(unwrap(b"tmbk\x02", &kek(1)), Err(WrapError::Format));
        assert_eq!(
            wrap(&[0; 9000], &kek(1), [0; 12]),
            Err(WrapError::TooLong { len: 9000 })
        );
    }

    #[test]
    fn a_key_file_is_raw_or_hexadecimal() {
        let wrapped = wrap(b"k", &kek(0xab), [0; NONCE_LEN]).unwrap();
        let hex = format!("{}\n", "aB".repeat(32));
        for contents in [&[0xab; 32][..], hex.as_bytes()] {
            assert_eq!(
                unwrap(&wrapped, &Kek::from_file_contents(contents).unwrap()).unwrap(),
                b"k"
            );
        }
        for contents in [&b""[..], &[1; 31], b"zz", &[b'a'; 62]] {
            assert!(
                matches!(Kek::from_file_contents(contents), Err(WrapError::Kek)),
                "{contents:?}"
            );
        }
    }
}
