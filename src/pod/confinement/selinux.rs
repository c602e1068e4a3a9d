//! SELinux: whether it is on, what its policy says of containers, and whether it knows a label.

use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use spec::selinux::Contexts;

use super::ConfinementError;

/// Where the kernel's module shows itself.
const ROOT: &str = "/sys/fs/selinux";
/// Which policy there is.
const CONFIG: &str = "/etc/selinux/config";
/// The policy's word on containers, below the policy's directory.
const CONTEXTS: &str = "contexts/lxc_contexts";

/// None where SELinux is off.
pub(super) fn find() -> Option<Contexts> {
    let is_on = Path::new(ROOT).join("enforce").try_exists().unwrap_or(false);
    is_on.then(|| {
        let config = std::fs::read_to_string(CONFIG).unwrap_or_default();
        let file = contexts_file(&config);
        Contexts::parse(&std::fs::read_to_string(file).unwrap_or_default())
    })
}

/// The file in the directory of the policy that the configuration names.
fn contexts_file(config: &str) -> PathBuf {
    let policy = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    let policy = policy.map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
    Path::new("/etc/selinux").join(policy.unwrap_or("targeted")).join(CONTEXTS)
}

/// Asks the kernel.
pub(super) fn check(label: &str) -> Result<(), ConfinementError> {
    let ask = || {
        let path = Path::new(ROOT).join("context");
        std::fs::OpenOptions::new().write(true).open(path)?.write_all(label.as_bytes())
    };
    ask().map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL) => ConfinementError::Label(label.to_owned()),
        _ => ConfinementError::Check(label.to_owned(), error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policys_file() {
        let named = "# SELINUXTYPE=none\nSELINUX=enforcing\nSELINUXTYPE=mls\n";
        assert_eq!(contexts_file(named), Path::new("/etc/selinux/mls/contexts/lxc_contexts"));
        assert_eq!(contexts_file(""), Path::new("/etc/selinux/targeted/contexts/lxc_contexts"));
    }
}
