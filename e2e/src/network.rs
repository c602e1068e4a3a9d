//! A CNI network of one's own: bridge with address management by host-local and port maps, under names unique to the run.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use crate::Result;

/// Where Debian's package and the upstream tarball put the plugins.
pub(crate) const PLUGIN_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A bridge network described by a conf list in a directory of its own.
#[derive(Debug, Clone)]
pub struct Network {
    /// The directory for `--cni-conf-dir`.
    pub conf_dir: PathBuf,
    /// Name of the bridge interface.
    pub bridge: String,
    /// The first three numbers of every pod address with the dot: `10.77.3.`.
    pub prefix: String,
    /// Where host-local keeps its leases.
    pub leases: PathBuf,
}

impl Network {
    /// Decides names and addresses from the run's token and prepares an empty conf directory under `dir`.
    pub fn plan(dir: &Path, token: &str) -> Result<Self> {
        let number = u32::from_str_radix(token, 16).context("the token is hexadecimal")?;
        let (second, third) = (64 + number % 128, (number >> 8) % 256);
        let network = Self {
            conf_dir: dir.join("net.d"),
            bridge: format!("ce{token}"),
            prefix: format!("10.{second}.{third}."),
            leases: dir.join("leases"),
        };
        std::fs::create_dir_all(&network.conf_dir).context("creating the CNI conf directory")?;
        Ok(network)
    }

    /// Writes the conf list: from now on the daemon has a network.
    pub fn enable(&self) -> Result {
        let list = json!({
            "cniVersion": "1.0.0",
            "name": self.bridge,
            "plugins": [
                {
                    "type": "bridge", "bridge": self.bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{ "subnet": format!("{}0/24", self.prefix) }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                        "dataDir": self.leases,
                    },
                },
                { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
            ],
        });
        // Renamed into place, so that a daemon that watches the directory never reads half a file.
        let temporary = self.conf_dir.join(".writing");
        std::fs::write(&temporary, serde_json::to_vec_pretty(&list)?).context("writing the CNI conf list")?;
        std::fs::rename(temporary, self.conf_file()).context("placing the CNI conf list")
    }

    /// Takes the conf list away again.
    pub fn disable(&self) -> Result {
        std::fs::remove_file(self.conf_file()).context("removing the CNI conf list")
    }

    /// The addresses that are leased now, as file names of host-local's directory.
    pub fn leased(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.leases.join(&self.bridge)) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&self.prefix)).collect()
    }

    fn conf_file(&self) -> PathBuf {
        self.conf_dir.join("10-e2e.conflist")
    }
}
