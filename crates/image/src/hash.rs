//! SHA-256 over whole values and over what comes piece by piece.
//!
//! `ring` hashes because the TLS stack brings it anyway and its assembly is the fastest on machines without SHA
//! instructions as well.

use ring::digest::{Context, SHA256, digest};
use types::Digest;

/// The digest of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    to_digest(digest(&SHA256, bytes).as_ref())
}

/// A running hash.
pub(crate) struct Hasher(Context);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        to_digest(self.0.finish().as_ref())
    }
}

fn to_digest(bytes: &[u8]) -> Digest {
    let mut array = [0; 32];
    array.copy_from_slice(bytes);
    Digest::from_sha256(array)
}
