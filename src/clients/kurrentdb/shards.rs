//! How the streams of a log are divided into shards. Pure.

use sha2::{Digest as _, Sha256};

/// The hash of a stream by its name: the first eight bytes of its SHA-256, the most significant first.
///
/// Checkpoints are kept by it, so that it never changes: a change would move streams between checkpoints.
pub fn stream_hash(stream: &[u8]) -> u64 {
    let digest = Sha256::digest(stream);
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// The shard of a stream with this hash, of so many, at least one.
pub fn shard_of(stream_hash: u64, shards: u32) -> u32 {
    // Less than the number of shards.
    u32::try_from(stream_hash % u64::from(shards.max(1))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_stays_in_its_shard_from_version_to_version() {
        // As `printf '' | sha256sum` begins.
        assert_eq!(stream_hash(b""), 0xe3b0_c442_98fc_1c14);
        let shards: Vec<u32> = (0..6).map(|n| shard_of(stream_hash(format!("order-{n}").as_bytes()), 24)).collect();
        assert_eq!(shards, [15, 20, 19, 15, 18, 9]);
        assert_eq!(shard_of(u64::MAX, 0), 0);
    }
}
