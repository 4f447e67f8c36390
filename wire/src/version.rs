//! Protocol versions: every stream and RPC carries one; roles up to two minor releases apart work together.

/// The version this build speaks on every RPC.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest version it still understands.
pub const PROTOCOL_VERSION_MIN: u32 = 1;

/// No version is spoken by both sides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the peer speaks protocol versions {peer_min} to {peer_max}, this build {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}; upgrade the older one"
)]
pub struct NoCommonVersion {
    /// Oldest version of the peer.
    pub peer_min: u32,
    /// Newest version of the peer.
    pub peer_max: u32,
}

/// The newest version that both sides speak.
///
/// # Errors
/// [`NoCommonVersion`] when there is none.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Result<u32, NoCommonVersion> {
    let common = PROTOCOL_VERSION.min(peer_max);
    if common < PROTOCOL_VERSION_MIN || common < peer_min || peer_min > peer_max {
        return Err(NoCommonVersion { peer_min, peer_max });
    }
    Ok(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_wins() {
        let table = [
            ((1, 1), Some(1)),
            ((1, 9), Some(1)),
            ((2, 9), None),
            ((0, 0), None),
            ((1, 0), None),
        ];
        for ((min, max), expected) in table {
            assert_eq!(negotiate(min, max).ok(), expected, "{min}..={max}");
        }
    }
}
