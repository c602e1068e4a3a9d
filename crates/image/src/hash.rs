//! SHA-256 over whole values and over streams.
//!
//! `ring` hashes because the TLS stack brings it anyway and its assembly is the fastest on machines without SHA
//! instructions as well.

use std::io::{self, Read};

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

/// Hashes everything that is read through it.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::new() }
    }

    pub(crate) fn finish(self) -> (R, Digest) {
        (self.inner, self.hasher.finish())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}
