//! The vocabulary that every part of crimson shares: ids, digests, error kinds, port mappings, timestamps, log field names.
//!
//! Promises: no IO, no async, no wire types. A value of a type from here is valid by construction; parsing happens
//! once, at the edge where the value enters.

pub mod digest;
pub mod error;
pub mod fields;
pub mod id;
pub mod port;
pub mod time;

pub use digest::{Digest, DigestError};
pub use error::{ErrorKind, Kind};
pub use id::{ContainerId, ExecId, IdError, ImageId, SandboxId};
pub use port::{PortMapping, Protocol};
pub use time::Timestamp;
