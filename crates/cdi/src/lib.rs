//! Container Device Interface: a vendor describes its devices in files, a container asks for them by name.
//!
//! A description ([`file::SpecFile`]) is JSON or YAML in one of a few directories. It has a kind (`vendor/class`), devices with
//! names, and for each of them edits of the container: variables, device nodes, mounts, hooks and so on. A container
//! names `vendor/class=device`, in a field of its request or in annotations ([`name`]).
//!
//! ```text
//! directories ──Registry::load──▶ Registry ──resolve(names)──▶ Edits ──complete──▶ Edits ──apply──▶ OCI spec
//!                (reads files)               (pure)              (looks at host nodes)   (pure)
//! ```
//!
//! Promises:
//!
//! * directories are read anew for each container that asks, so what a vendor has changed a moment ago counts, and nothing
//!   has to be watched;
//! * a device in a later directory takes the place of one in an earlier; two of one name in one directory are neither;
//! * a file that cannot be used takes only its own devices away, and is named when one of its kind is missed;
//! * all devices of a request are resolved, or the error names every one that is not.

mod edits;
mod error;
pub mod file;
pub mod name;
mod registry;

pub use edits::Edits;
pub use error::CdiError;
pub use registry::Registry;
