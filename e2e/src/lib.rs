//! Black-box harness for Crimson: a real daemon, a real registry, real CNI plugins and a real OCI runtime, driven through
//! CRI by a client that shares no code with the server (the crate `k8s-cri`).
//!
//! A test owns a [`Node`]: one daemon inside one [`Machine`], which is a set of private mount, network and process
//! namespaces on the host's kernel. Whatever the daemon leaves behind is therefore seen exactly ([`Node::finish`] compares
//! a [`Snapshot`] from before with one from after) and vanishes with the machine, however the test ends.
//!
//! Where systemd is the first process, `CRIMSON_E2E_CGROUP_DRIVER=systemd` makes the same tests use it: pods then lie in
//! slices and containers in scopes, and machines have the processes of the host, for systemd knows no others.
//!
//! Nothing here imports a crate of the product: only its binaries, sockets and documented paths are used.

mod cgroups;
mod client;
mod configs;
pub mod faulty;
mod http;
mod image;
mod machine;
mod network;
mod node;
mod notify;
mod process;
mod registry;
mod registry_proxy;
mod rescue;
mod setting;
mod snapshot;
mod stage;
mod steps;
pub mod streaming;
pub mod trial;

pub use client::{Cri, code_of, prefix_of};
pub use configs::{ContainerSpec, PodSpec};
pub use http::{HttpReply, http_get};
pub use image::{ImageBuilder, Layer, Media, Packing, PushedImage};
pub use machine::Machine;
pub use network::Network;
pub use node::{Node, Options, binary_dir};
pub use registry::{PASSWORD, Registry, USER};
pub use registry_proxy::{InForce, RegistryProxy, Request, Trouble};
pub use setting::{CgroupDriver, patience, program};
pub use snapshot::Snapshot;
pub use stage::Stage;
pub use steps::{Step, parse_steps};

/// The generated CRI types of the independent client.
pub use k8s_cri::v1 as cri;

/// What harness functions return: a test has nothing to branch on, so any error will do as long as it reads well.
pub type Result<T = ()> = anyhow::Result<T>;

/// Eight hex characters that name one run, so that runs side by side never meet.
pub(crate) fn run_token() -> String {
    let mut bytes = [0_u8; 4];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(4), "the kernel gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
