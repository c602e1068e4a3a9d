//! In what setting the tests run: which cgroup driver and OCI runtime the daemons use, and how slow the machine is.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context;

use crate::Result;

/// Who makes the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The daemon, by the files of the kernel.
    Cgroupfs,
    /// systemd, which is asked over D-Bus.
    Systemd,
}

impl CgroupDriver {
    /// The driver of this run: `CRIMSON_E2E_CGROUP_DRIVER`, or cgroupfs.
    #[must_use]
    pub fn asked_for() -> Self {
        match std::env::var("CRIMSON_E2E_CGROUP_DRIVER").as_deref() {
            Ok("systemd") => Self::Systemd,
            _ => Self::Cgroupfs,
        }
    }

    /// The value of `--cgroup-driver`.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// That many seconds on a usual machine, and `CRIMSON_E2E_SLOW` times as many on one that is slow.
#[must_use]
pub fn patience(seconds: u64) -> Duration {
    static FACTOR: LazyLock<f64> = LazyLock::new(|| {
        let text = std::env::var("CRIMSON_E2E_SLOW").unwrap_or_default();
        text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor >= 1.0).unwrap_or(1.0)
    });
    Duration::from_secs(seconds).mul_f64(*FACTOR)
}

/// The flags that make the OCI runtime of `CRIMSON_E2E_RUNTIME` the only one; none leaves the choice to the daemon.
pub(crate) fn runtime_flags() -> Result<Vec<String>> {
    let Some(name) = std::env::var("CRIMSON_E2E_RUNTIME").ok().filter(|name| !name.is_empty()) else {
        return Ok(Vec::new());
    };
    let path = program(&name).with_context(|| format!("the runtime {name} is not on PATH"))?;
    Ok(vec!["--runtime".to_owned(), format!("{name}={}", path.display())])
}

/// Where PATH has a program, or the system's own directory, which a user's PATH leaves out.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|dir| dir.join(name)).find(|it| it.is_file())
}
