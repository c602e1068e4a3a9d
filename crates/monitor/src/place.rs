//! What the monitor does for itself before anything else: it moves into its own cgroup, and out of the OOM killer's sight.

use std::fs;
use std::path::{Path, PathBuf};

use crate::report;

/// The OOM killer's last choice but for what it may never choose.
const OOM_SCORE_ADJ: i32 = -999;
const SCORE_FILE: &str = "/proc/self/oom_score_adj";

/// Enters these cgroups, one for each hierarchy. A monitor in the wrong one is better than a pod without, so a failure is only
/// reported.
pub(crate) fn enter_cgroups(dirs: &[PathBuf]) {
    for dir in dirs {
        if let Err(error) = enter(dir) {
            report::failure(&format!("entering the cgroup {}", dir.display()), &error);
        }
    }
}

fn enter(dir: &Path) -> std::io::Result<()> {
    // 0 is whoever writes it.
    fs::write(dir.join("cgroup.procs"), "0")
}

/// Asks to be spared, where that is permitted. What the monitor starts inherits this, but for containers, whose specs say
/// what is theirs, and execs, which get their container's ([`crate::exec`]).
pub(crate) fn ask_to_be_spared() {
    let now = fs::read_to_string(SCORE_FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now > OOM_SCORE_ADJ) {
        // Only CAP_SYS_RESOURCE may lower it; the daemon's own unit sets the same, so this is the exception anyway.
        fs::write(SCORE_FILE, OOM_SCORE_ADJ.to_string()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_entered_by_its_file_of_processes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        enter_cgroups(&[PathBuf::from("/no/such/cgroup"), dir.path().to_owned()]);
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.procs")).unwrap(), "0");
    }
}
