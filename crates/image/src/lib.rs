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
//! * What is listed is whole and on the disk; what a crash or failure interrupted is gone when the store opens, or before
//!   the failed call returns.
//! * Whoever asks for a pull that is under way joins it. It goes on while one caller waits and stops with the last.
//! * Reading (list, resolve, usage) never waits for disk or network.
//!
//! Where to read: [`reference`](Reference) and `hosts` turn text into servers, `registry` speaks to them, `layer` and
//! `unpack` make directories of what comes, `store` keeps them (its doc has the tree on disk), `pull` is the conductor.

mod auth;
mod error;
pub mod fake;
mod hash;
mod hosts;
mod images;
mod index;
mod layer;
mod manifest;
mod pinned;
mod platform;
mod pull;
mod record;
mod reference;
mod registry;
mod source;
mod store;
mod tar;
mod unpack;

pub use auth::{Auth, AuthError};
pub use error::ImageError;
pub use images::{Images, StoreConfig};
pub use oci_spec::image::ImageConfiguration;
pub use platform::Platform;
pub use pull::PullRequest;
pub use record::{ImageRecord, ImageUser, Layer, Rootfs, chain_id};
pub use reference::{Reference, ReferenceError};
pub use source::ImageSource;
pub use store::{StoreUsage, leases_on_disk};
pub use tar::TarError;
pub use types::ImageId;
pub use unpack::{EntryError, UnpackError};
