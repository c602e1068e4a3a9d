//! The language between the daemon and `crimson-monitor`, the small process that parents every process of one pod.
//!
//! One message is one `SOCK_SEQPACKET` datagram: a JSON [`Envelope`] of at most [`MESSAGE_LIMIT`] bytes, file
//! descriptors beside it as `SCM_RIGHTS`. The daemon sends [`Request`]s with increasing `seq`; the monitor answers each
//! with one [`Reply`] of the same `seq`, in any order, and sends [`Event`]s with `seq` 0 to every connection.
//!
//! A monitor outlives the daemon that spawned it, upgrades included, so the protocol only grows: unknown fields are
//! ignored, new fields have defaults, an unknown request is refused as [`RefusalKind::Unsupported`], an unknown reply fails the
//! one call that it answers, and an unknown event is skipped. Should that not be enough one day, the two agree on a version when they
//! greet ([`Versions`]). `tests/corpus` holds messages as they were recorded; all of them are understood for ever. What is announced in an [`Event`] or [`Reply`] is on disk already.
//!
//! * [`message`] — the types, [`codec`] — bytes to types and back;
//! * `client` (feature `client`) — the daemon's side: the traits `Monitor` and `Monitors` and their real form;
//! * `fake` (feature `fake`) — the same traits in memory, with faults to inject.

pub mod codec;
pub mod message;
mod versions;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "fake")]
pub mod fake;

#[cfg(feature = "client")]
pub use client::{Connection, Created, Monitor, Monitors, PlacedMonitors, ProcessMonitors, StartedExec};
pub use codec::{CodecError, MESSAGE_LIMIT};
#[cfg(feature = "client")]
pub use error::MonitorError;
pub use message::{
    AttachRequest, ContainerState, CreateRequest, Envelope, Event, ExecRequest, ExitRecord, ImageMount,
    MappedVolume, Overlay, Phase, Refusal, RefusalKind, Reply, Request, RuntimeCommand, UserNamespace,
};

use std::time::Duration;

pub use versions::{VERSION, Versions};

/// How long the monitor lets the runtime take for `start`.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the monitor lets the runtime take for `delete --force`, after the container's processes were killed.
pub const DELETE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the monitor waits between two rounds of [`Event::LogLinesDropped`].
pub const DROPS_TOLD_EVERY: Duration = Duration::from_secs(10);
