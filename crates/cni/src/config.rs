//! Where the network driver finds and keeps things.

use std::path::PathBuf;
use std::time::Duration;

/// Paths and limits of the network driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniConfig {
    /// Directory with the network configurations; the first valid one in lexical order is used.
    pub conf_dir: PathBuf,
    /// Directories with the plugin programs, searched in this order; handed to plugins as `CNI_PATH`.
    pub bin_dirs: Vec<PathBuf>,
    /// Durable directory for the records of attachments, one file per sandbox.
    pub cache_dir: PathBuf,
    /// How long one whole operation (all plugins of an ADD, DEL or CHECK) may take.
    pub operation_timeout: Duration,
    /// Name of the pod's interface inside its network namespace.
    pub interface: String,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/crimson/cni".into(),
            operation_timeout: Duration::from_secs(120),
            interface: "eth0".to_owned(),
        }
    }
}
