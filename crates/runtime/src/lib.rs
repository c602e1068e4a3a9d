//! What crimson asks of an OCI runtime and how: by command line, as runc and crun share it.
//!
//! The contract is kept narrow on purpose, so that any runtime fits: arguments, the bundle directory, a pid file, the exit
//! status and a log of JSON lines. Nothing here interprets a runtime's state directory or its output beyond that.
//!
//! * [`RuntimeCommand`] — the arguments of each command;
//! * [`error_text`] — what went wrong, in one clean sentence, from the runtime's log;
//! * `probe` (feature `probe`) — which runtimes are there, what they are, and whether they can make a container here;
//! * `update` (feature `probe`) — changing the limits of a running container.

mod command;
mod error_log;
#[cfg(feature = "probe")]
pub mod probe;
#[cfg(feature = "probe")]
mod run;
#[cfg(feature = "probe")]
mod update;

pub use command::{Create, Exec, RuntimeCommand};
pub use error_log::error_text;
#[cfg(feature = "probe")]
pub use run::RuntimeError;
#[cfg(feature = "probe")]
pub use update::{UPDATE_ATTEMPTS, update};
