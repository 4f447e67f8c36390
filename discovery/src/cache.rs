//! The state of the clusterset on disk, so that an agent starts with no broker in reach.
//!
//! ```text
//! "TOMBOLO\n"  8 bytes
//! version      u32, big endian: CACHE_VERSION
//! checksum     u32, big endian: CRC-32C of all that follows
//! head         length-prefixed SnapshotMeta: cluster, version (local too), confirmed_unix_ms
//! entries      length-prefixed v1.Entry, until the end; no drills
//! ```
//! The entries are those of a watch stream: an older build skips what it does not know.

use prost::Message;
use tombolo_clusterset::ClusterId;
use tombolo_wire::v1;

use crate::watched::{Changes, Watched};

/// The format that this build writes and reads.
pub const CACHE_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"TOMBOLO\n";
const HEAD_LEN: usize = 16;

/// What the cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The state.
    pub watched: Watched,
    /// When a broker last confirmed it, milliseconds since the Unix epoch.
    pub confirmed_unix_ms: u64,
    /// Local part of the last snapshot's version.
    pub local: u64,
    /// Entries that were left out since they make no sense to this build.
    pub left_out: usize,
}

/// Why a cache cannot be used. The agent then starts as if it had none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// It is another file.
    #[error("it is no snapshot cache; remove it")]
    NotACache,
    /// Another format.
    #[error(
        "it has format {found}, and this build reads {CACHE_VERSION}; it will be written anew once a broker answers"
    )]
    Version {
        /// The format.
        found: u32,
    },
    /// Bytes changed.
    #[error("its checksum does not match; it was damaged on disk")]
    Damaged,
    /// Another cluster's.
    #[error("it belongs to cluster {found}, and this is {ours}; remove it")]
    OtherCluster {
        /// Whose it is.
        found: String,
        /// Who we are.
        ours: ClusterId,
    },
}

/// The bytes of the cache.
#[must_use]
pub fn encode(cluster: &ClusterId, watched: &Watched, confirmed_unix_ms: u64, local: u64) -> Vec<u8> {
    let version = v1::Version {
        incarnation: watched.incarnation,
        revision: watched.revision,
        local,
    };
    let head = v1::SnapshotMeta {
        version: Some(version),
        cluster: cluster.to_string(),
        fresh: false,
        confirmed_unix_ms,
    };
    let mut body = head.encode_length_delimited_to_vec();
    for entry in watched.to_entries() {
        body.extend(entry.encode_length_delimited_to_vec());
    }
    let mut bytes = Vec::with_capacity(HEAD_LEN + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&CACHE_VERSION.to_be_bytes());
    bytes.extend_from_slice(&crc32c(&body).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Reads the cache of `cluster`.
///
/// # Errors
/// [`CacheError`].
pub fn decode(cluster: &ClusterId, bytes: &[u8]) -> Result<Cached, CacheError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(CacheError::NotACache)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or(CacheError::Damaged)?;
    let found = u32::from_be_bytes(*version);
    if found != CACHE_VERSION {
        return Err(CacheError::Version { found });
    }
    let (checksum, mut body) = rest.split_first_chunk::<4>().ok_or(CacheError::Damaged)?;
    if crc32c(body) != u32::from_be_bytes(*checksum) {
        return Err(CacheError::Damaged);
    }
    let head = v1::SnapshotMeta::decode_length_delimited(&mut body).map_err(|_| CacheError::Damaged)?;
    if head.cluster != cluster.as_str() {
        return Err(CacheError::OtherCluster {
            found: head.cluster,
            ours: cluster.clone(),
        });
    }
    let version = head.version.unwrap_or_default();
    let mut watched = Watched {
        incarnation: version.incarnation,
        revision: version.revision,
        ..Watched::default()
    };
    let mut left_out = 0;
    while !body.is_empty() {
        let entry = v1::Entry::decode_length_delimited(&mut body).map_err(|_| CacheError::Damaged)?;
        left_out += usize::from(watched.apply(&entry, &mut Changes::default()).is_err());
    }
    Ok(Cached {
        watched,
        confirmed_unix_ms: head.confirmed_unix_ms,
        local: version.local,
        left_out,
    })
}

/// CRC-32C (RFC 3720 §B.4), eight table look-ups away from needing a crate: half a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let mut table = [0; 16];
        let mut at = 0;
        while at < 16 {
            let mut crc = at as u32;
            let mut bit = 0;
            while bit < 4 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[at] = crc;
            at += 1;
        }
        table
    };
    let step = |crc: u32, nibble: u32| TABLE[((crc ^ nibble) & 0xf) as usize] ^ (crc >> 4);
    !bytes.iter().fold(!0, |crc, byte| {
        step(step(crc, u32::from(byte & 0xf)), u32::from(byte >> 4))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterId {
        ClusterId::parse("here").unwrap()
    }

    fn sample() -> Watched {
        let mut watched = Watched {
            incarnation: 2,
            revision: 40,
            ..Watched::default()
        };
        watched.trust.trust_domain = "demo-aaaa2222".to_owned();
        watched.trust.roots = vec![vec![1, 2, 3]];
        watched.trust.denied = vec![[7; 32]];
        watched.brokers = vec!["127.10.0.1:7400".to_owned()];
        watched
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(
            crc32c(b"123456789"),
            0xe306_9283,
            "the check value of its catalogue entry"
        );
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa, "RFC 3720 §B.4");
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode(&cluster(), &sample(), 77, 5);
        let cached = decode(&cluster(), &bytes).unwrap();
        assert_eq!(
            cached,
            Cached {
                watched: sample(),
                confirmed_unix_ms: 77,
                local: 5,
                left_out: 0
            }
        );
    }

    #[test]
    fn every_damage_is_seen() {
        let bytes = encode(&cluster(), &sample(), 77, 5);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(decode(&cluster(), &damaged).is_err(), "byte {at}");
            assert!(decode(&cluster(), &bytes[..at]).is_err(), "cut at {at}");
        }
        let other = ClusterId::parse("there").unwrap();
        let error = decode(&other, &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it belongs to cluster here, and this is there; remove it"
        );
    }
}
