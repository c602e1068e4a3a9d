//! The vocabulary that every part of crimson shares: ids, digests, error kinds, port mappings, timestamps, log field names,
//! counts of durations.
//!
//! Promises: no IO, no async, no wire types. A value of a type from here is valid by construction; parsing happens
//! once, at the edge where the value enters.

pub mod digest;
pub mod durations;
pub mod error;
pub mod fields;
pub mod id;
pub mod port;
pub mod spans;
pub mod time;

pub use digest::{Digest, DigestError};
pub use durations::{DurationCounts, Durations};
pub use error::{ErrorKind, Kind};
pub use id::{ContainerId, ExecId, IdError, ImageId, SandboxId};
pub use port::{PortMapping, Protocol};
pub use time::Timestamp;
