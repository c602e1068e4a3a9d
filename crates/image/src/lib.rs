//! Images: names become root file systems.
//!
//! [`Images`] pulls images from registries, keeps them, finds them by whatever people call them, and lends their layers
//! to containers.
//!
//! ```text
//! reference ─▶ hosts.toml ─▶ registry ─▶ manifest ─▶ config ─▶ layers ─▶ record
//!                                                              │ side by side, each:
//!                                                              └ download ═▶ hash ▶ decompress ▶ hash ▶ unpack ▶ rename
//! ```
//!
//! Promises:
//! * Every blob has the digest that the manifest gives it, every layer the diff id that the config gives it.
//! * What is listed is whole and on the disk; what a failure interrupted is gone before the failed call returns. What the
//!   end of the process interrupted is gone when the store opens, but for what the next pull goes on with (see `parts`).
//! * Whoever asks for a pull that is under way joins it. It goes on while one caller waits and stops with the last.
//! * Reading (list, resolve, usage) never waits for disk or network.
//!
//! Where to read: [`reference`](Reference) and `hosts` turn text into servers, `registry` speaks to them, `layer` and
//! `unpack` make directories of what comes, `store` keeps them (its doc has the tree on disk), `pull` is the conductor.
//! Images leave by `archive` and `push`, which make a layer's archive again from its tree and its `recipe`.

mod archive;
mod auth;
mod counts;
mod error;
pub mod fake;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod hosts;
mod images;
mod index;
mod layer;
mod manifest;
mod parts;
mod pinned;
mod platform;
mod pull;
mod push;
mod recipe;
mod record;
mod reference;
mod registry;
mod repair;
mod source;
mod store;
mod tar;
mod trace;
mod unpack;

pub use archive::{ArchiveFormat, LoadedImage};
pub use auth::{Auth, AuthError};
pub use counts::{ImageFigures, PullFailure, PullFigures, RateCounts};
pub use error::ImageError;
pub use images::{Images, StoreConfig};
pub use oci_spec::image::ImageConfiguration;
pub use platform::Platform;
pub use pull::{PullProgress, PullRequest, PullStage};
pub use push::PushRequest;
pub use recipe::RecipeError;
pub use record::{ImageRecord, ImageUser, Layer, Rootfs, chain_id};
pub use reference::{Reference, ReferenceError};
pub use source::ImageSource;
pub use store::{DamagedImage, Fault, Part, StoreUsage, damage_on_disk, leases_on_disk, still_damaged};
pub use tar::TarError;
pub use types::ImageId;
pub use unpack::{EntryError, UnpackError};
