//! What crimson asks of the kernel, and the only crate that may do it with unsafe code.
//!
//! Each module owns one kind of request: [`atomic`] files that are whole or absent, [`mount`] and [`overlay_view`]
//! mounts, [`netns`] network namespaces, [`userns`] user namespaces and their id maps, [`beneath`] paths inside an untrusted root, [`pidfd`] processes that cannot be
//! confused with others, [`fdpass`] descriptors over sockets, [`signals`] and [`process`] what a supervisor of children
//! needs, [`spawn`] starting programs, [`pause`] the first process of a pod.
//!
//! Promises:
//! * every descriptor this crate makes is owned and closed on exec;
//! * no Rust code runs between fork and exec;
//! * a namespace is only ever entered by a thread that ends with the call, so no other code can find itself in it; the one
//!   exception, [`process::unshare_mount_namespace`], says whom it is for;
//! * nothing here knows of pods, containers or images, and nothing keeps state between calls except the one signal pipe
//!   of [`signals`].
//!
//! All calls block. A caller with an async runtime moves them to its blocking threads.

pub mod atomic;
pub mod beneath;
pub mod disk;
pub mod fdpass;
pub mod mount;
pub mod netns;
pub mod overlay_view;
pub mod pause;
pub mod pidfd;
pub mod process;
pub mod random;
pub mod signals;
pub mod spawn;
pub mod userns;

mod error;
mod mountinfo;
mod thread;

pub use error::{BeneathError, FileError, MountError, NetnsError};
pub use process::{set_subreaper, subreaper};
