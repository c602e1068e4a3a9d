//! What crimson asks of an OCI runtime and how: by command line, as runc and crun share it.
//!
//! The contract is kept narrow on purpose, so that any runtime fits: arguments, the bundle directory, a pid file, the exit
//! status and a log of JSON lines. Nothing here interprets a runtime's state directory or its output beyond that.
//!
//! * [`RuntimeCommand`] — the arguments of each command;
//! * [`error_text`] — what went wrong, in one clean sentence, from the runtime's log;
//! * `probe` (feature `probe`) — which runtimes are there, what they are, and whether they can make a container here;
//! * `update` (feature `probe`) — changing the limits of a running container;
//! * [`Features`], [`Advisory`] (feature `probe`) — what a runtime can do, and what is known to be wrong with it.

#[cfg(feature = "probe")]
mod advisory;
mod command;
mod error_log;
#[cfg(feature = "probe")]
mod features;
#[cfg(feature = "probe")]
pub mod probe;
#[cfg(feature = "probe")]
mod run;
#[cfg(feature = "probe")]
mod update;
#[cfg(feature = "probe")]
mod version;

#[cfg(feature = "probe")]
pub use advisory::Advisory;
pub use command::{Create, Exec, RuntimeCommand};
pub use error_log::error_text;
#[cfg(feature = "probe")]
pub use features::Features;
#[cfg(feature = "probe")]
pub use run::RuntimeError;
#[cfg(feature = "probe")]
pub use update::{UPDATE_ATTEMPTS, update};
#[cfg(feature = "probe")]
pub use version::{Version, VersionError, identify};
