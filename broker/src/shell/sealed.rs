//! Files that say what they are and whether they are whole: snapshots and back-ups.
//!
//! ```text
//!   [8] magic   u32 format   u64 length of the head   head   body   [32] SHA-256 of all before it     (big endian)
//! ```

use aws_lc_rs::digest;
use bytes::{Buf, Bytes};

/// Version of this layout.
const FORMAT: u32 = 1;
const FIXED: usize = 8 + 4 + 8;
const SUM: usize = 32;

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Raft snapshot; its head is openraft's metadata.
    Snapshot,
    /// A back-up; its head says when it was taken.
    Backup,
}

impl Kind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Snapshot => b"TMBSNAP\n",
            Self::Backup => b"TMBBACK\n",
        }
    }
}

/// Why a file is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Something else.
    #[error("this is no {0:?} of a Tombolo broker; check that it is the right file")]
    Foreign(Kind),
    /// A newer build wrote it.
    #[error("its format is {0}, this build reads up to {FORMAT}; use a newer tombolo")]
    Newer(u32),
    /// Cut short or changed.
    #[error("its checksum does not match: it is damaged or cut short; use another copy")]
    Damaged,
}

/// The bytes of a file of `kind`.
#[must_use]
pub fn seal(kind: Kind, head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED + head.len() + body.len() + SUM);
    bytes.extend_from_slice(kind.magic());
    bytes.extend_from_slice(&FORMAT.to_be_bytes());
    bytes.extend_from_slice(&(head.len() as u64).to_be_bytes());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(body);
    let sum = digest::digest(&digest::SHA256, &bytes);
    bytes.extend_from_slice(sum.as_ref());
    bytes
}

/// Head and body of a file of `kind`.
///
/// # Errors
/// [`Broken`] says why it is none.
pub fn open(kind: Kind, bytes: Bytes) -> Result<(Bytes, Bytes), Broken> {
    if bytes.get(..8) != Some(kind.magic().as_slice()) {
        return Err(Broken::Foreign(kind));
    }
    let whole = bytes
        .len()
        .checked_sub(SUM)
        .filter(|whole| *whole >= FIXED)
        .ok_or(Broken::Damaged)?;
    let mut fixed = bytes.slice(8..FIXED);
    let format = fixed.get_u32();
    if format > FORMAT {
        return Err(Broken::Newer(format));
    }
    if digest::digest(&digest::SHA256, &bytes[..whole]).as_ref() != &bytes[whole..] {
        return Err(Broken::Damaged);
    }
    let head = usize::try_from(fixed.get_u64()).map_err(|_| Broken::Damaged)?;
    let split = FIXED
        .checked_add(head)
        .filter(|split| *split <= whole)
        .ok_or(Broken::Damaged)?;
    Ok((bytes.slice(FIXED..split), bytes.slice(split..whole)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed_and_nothing_else() {
        let sealed = Bytes::from(seal(Kind::Backup, b"head", b"the body"));
        assert_eq!(
            open(Kind::Backup, sealed.clone()),
            Ok((Bytes::from("head"), Bytes::from("the body")))
        );
        assert_eq!(
            open(Kind::Snapshot, sealed.clone()),
            Err(Broken::Foreign(Kind::Snapshot))
        );
        for cut in 8..sealed.len() {
            assert_eq!(
                open(Kind::Backup, sealed.slice(..cut)),
                Err(Broken::Damaged),
                "cut at {cut}"
            );
        }
        for at in 12..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert_eq!(
                open(Kind::Backup, changed.into()),
                Err(Broken::Damaged),
                "changed at {at}"
            );
        }
        let mut newer = sealed.to_vec();
        newer[11] = 9;
        assert_eq!(open(Kind::Backup, newer.into()), Err(Broken::Newer(9)));
    }
}
