//! Recipes: how the exact archive of an unpacked layer is made again.
//!
//! A layer's blob is not kept, since its files are on disk already. What the files do not say (headers, extensions,
//! padding, whatever follows the archive) goes into `layers/<name>/recipe` while the layer is unpacked; [`read`] puts both
//! together again. The layer's diff id proves the result, so that a recipe needs no checksum of its own.
//!
//! # The file, version 1
//!
//! Numbers are little endian; a *varint* has seven bits in a byte, the lowest first, the eighth saying that more follow.
//!
//! ```text
//! file   = "crimson-recipe" 0x00 version(u8) chunk* end
//! chunk  = kind(u8) raw_len(u32) packed_len(u32) packed      `packed` is one zstd frame of `raw_len` bytes
//! end    = 0x02 0(u32) 0(u32)                                a file that does not end so was cut
//!
//! kind 0 = step*                                             a step never spans chunks
//! step   = 0x00 len(varint) byte*                            bytes as they stood in the archive
//!        | 0x01 path_len(varint) path size(varint) offset(varint) len(varint)
//!                                                            `len` bytes at `offset` of the file at `path`, which is
//!                                                            relative to the layer's root, leads through no symbolic
//!                                                            link, and has `size` bytes
//! kind 1 = path_len(varint) path step(varint) size(varint) offset(varint) byte*
//!                                                            a part of a file that a later entry replaced, for the
//!                                                            steps of kind 0x01 numbered below `step`; what no part
//!                                                            holds is a hole
//! ```
//!
//! Promises: memory is bounded by [`MAX_RAW`] and a table of replaced files, when written and when read; nothing in the
//! file is believed ([`parse`] never panics), no link is followed, nothing but regular files beneath the root is opened.

mod container;
mod read;
mod step;
mod write;

use std::io;
use std::path::PathBuf;

#[cfg(any(test, fuzzing))]
pub(crate) use read::parse;
pub(crate) use read::{Tar, length, open, read};
pub(crate) use step::Content;
pub(crate) use write::{Tap, Writer};

/// The file's name, beside the tree.
pub(crate) const FILE: &str = "recipe";
/// The tree's name.
const TREE: &str = "fs";
/// Largest chunk, before it is packed.
const MAX_RAW: usize = 512 << 10;
/// As long as a path gets.
const MAX_PATH: usize = 4096;

/// A layer's archive cannot be made again.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The layer was unpacked by a version that wrote no recipes.
    #[error("layer {0} has no recipe: it was unpacked before there were any, and has to be pulled again")]
    Missing(PathBuf),
    /// The recipe is damaged, or of a newer version.
    #[error("the recipe is malformed: {0}")]
    Malformed(&'static str),
    /// A file of the tree is not as it was unpacked.
    #[error("file {path:?} of the layer {problem}")]
    Tree {
        /// The file's path within the layer, as far as it is text.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The recipe or a file cannot be read.
    #[error("{op} failed")]
    Io {
        /// What was being done, with the name of the file.
        op: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl RecipeError {
    fn io(op: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let op = op.into();
        move |source| Self::Io { op, source }
    }
}

impl From<RecipeError> for io::Error {
    fn from(error: RecipeError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests;
