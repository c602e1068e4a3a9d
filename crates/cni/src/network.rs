//! The contract between the pod domain and whatever connects pods.

use std::fmt::Debug;
use std::net::IpAddr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use types::SandboxId;

use crate::error::CniError;
use crate::pod::PodNetwork;

/// A pod's connection to the network, as the plugins reported it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the network that the pod is attached to.
    pub network: String,
    /// Name of the pod's interface inside its namespace.
    pub interface: String,
    /// Addresses of that interface in the plugins' order; never empty.
    pub ips: Vec<IpAddr>,
    /// Hardware address of that interface, where the plugins told it.
    pub mac: Option<String>,
    /// The final result as it came from the last plugin.
    pub result: serde_json::Value,
}

/// Whether pods can be given a network now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether a valid configuration is loaded and its plugins say they are able.
    pub ready: bool,
    /// Empty when ready, else a word for machines.
    pub reason: String,
    /// Empty when ready, else a sentence for the operator.
    pub message: String,
}

impl NetworkStatus {
    /// Ready, nothing to say.
    #[must_use]
    pub fn ready() -> Self {
        Self { ready: true, reason: String::new(), message: String::new() }
    }

    /// Not ready because of `message`, with the reason word that node tooling knows.
    #[must_use]
    pub fn not_ready(message: impl Into<String>) -> Self {
        Self { ready: false, reason: "NetworkPluginNotReady".to_owned(), message: message.into() }
    }
}

/// Connects pods to the network and disconnects them.
///
/// Futures may be dropped at any time: the operation goes on to its end, the next one on the same sandbox waits for it,
/// and [`Network::teardown`] undoes what it did.
#[async_trait]
pub trait Network: Send + Sync + Debug {
    /// Attaches the pod. On failure everything that was begun has been undone, or is still on record for a
    /// [`Network::teardown`] to undo. What an earlier attempt for this sandbox left is undone first.
    ///
    /// # Errors
    /// When no network is configured, or a plugin fails, hangs or yields no address.
    async fn setup(&self, pod: &PodNetwork) -> Result<Attachment, CniError>;

    /// Detaches the pod with the list and result of its setup. A pod without a record was never attached, or is
    /// detached already: success, and no plugin runs.
    ///
    /// # Errors
    /// When a plugin fails; the record stays, so calling again later tries again.
    async fn teardown(&self, pod: &PodNetwork) -> Result<(), CniError>;

    /// Asks the plugins whether the attachment is still as they made it. Success where the list's version has no CHECK
    /// or the list turns it off.
    ///
    /// # Errors
    /// When the pod is not attached or a plugin finds a difference.
    async fn check(&self, pod: &PodNetwork) -> Result<(), CniError>;

    /// Detaches every recorded sandbox that is not in `valid`, then lets the plugins collect what is theirs (CNI 1.1).
    ///
    /// A sandbox that this process attached and did not begin to detach counts as valid even if the list, which was
    /// taken a moment earlier, lacks it.
    ///
    /// # Errors
    /// When something could not be collected; the rest was.
    async fn gc(&self, valid: &[SandboxId]) -> Result<(), CniError>;

    /// Whether pods can be attached, as last found out. Never waits.
    fn status(&self) -> NetworkStatus;

    /// The configuration in the shape `crictl info` shows as `cniconfig`.
    fn describe(&self) -> serde_json::Value;

    /// Sandboxes that have a record: attached, or not proven to be detached.
    fn cached(&self) -> Vec<SandboxId>;
}
