//! The client side of CNI: what libcni does for other runtimes. Pods get their network from programs (plugins) that a
//! configuration list names; this crate finds the list, runs the programs, and remembers enough to undo them.
//!
//! ```text
//! conf_dir/10-net.conflist ─▶ discover ─▶ watch task ─▶ published list and status ─▶ status(), describe()
//!                                              │
//! setup(pod)    ─▶ record (intent) ─▶ ADD plugin 1 … n, each fed the previous result ─▶ record (result) ─▶ Attachment
//! teardown(pod) ─▶ record ─▶ DEL plugin n … 1, with the list and result of the record ─▶ record removed
//! ```
//!
//! Promises:
//! * Nothing is done that a record on disk does not already know how to undo, so a `kill -9` between any two steps
//!   leaves a record from which [`Network::teardown`] or [`Network::gc`] finishes the job.
//! * DEL uses the list that ADD used, even when the configuration directory has changed or is gone.
//! * Every plugin has a deadline; at its end the plugin's whole process group is killed. Dropping the future of an
//!   operation stops nothing: it goes on to its end, and the next operation on the sandbox waits for it, also when that
//!   comes from a new process after the old one was killed.
//! * [`Network::status`] reads what was published last: it never runs a plugin and never waits.
//! * One operation per sandbox at a time, different sandboxes in parallel; CNI's GC verb runs while nothing else does.
//!
//! Specification versions 0.3.1, 0.4.0, 1.0.0 and 1.1.0 are spoken; the older result layout is understood as well.
//!
//! The types of the crate `cni-plugin` 0.2 were looked at and do not fit this side: its replies cannot be read when
//! they lack `dns` (many plugins leave it out), its error reply borrows a text that must not contain escapes, its
//! result lists drop what a newer specification added although a client must hand results on unchanged, it knows
//! neither `cniVersions`, GC nor STATUS, and it brings an argument logger, regular expressions and two old version
//! and network crates into a daemon. The client passes results through as JSON and reads the few fields it needs.

mod bandwidth;
mod capture;
mod chain;
mod config;
mod counts;
mod discover;
mod driver;
mod error;
pub mod fake;
mod gate;
mod list;
mod network;
mod orphan;
mod plugin;
mod pod;
mod published;
mod quantity;
mod record;
mod result;
mod runtime;
mod survey;
mod syncer;
#[cfg(test)]
mod testing;
mod version;
mod watch;

pub use bandwidth::{Bandwidth, BandwidthError};
pub use config::CniConfig;
pub use counts::OperationFigures;
pub use driver::Cni;
pub use error::CniError;
pub use network::{Attachment, Network, NetworkStatus};
pub use pod::{Dns, PodNetwork};
pub use record::recorded_in;
pub use survey::{Survey, SurveyedNetwork, survey};
