//! The helper between the monitor and the OCI runtime's `create`.
//!
//! It takes a copy of the host's present mount namespace, so that what kubelet mounted a moment ago is there, mounts the
//! container's root filesystem in it and becomes the runtime. The runtime's child inherits the namespace and copies it into
//! the container's own; when the runtime ends, the copy ends, and the host never had the mount. Propagation is left as it is, so a
//! volume with bidirectional propagation still reaches the host. What keeps the root filesystem from doing the same is
//! that the bundle lies beneath a private mount; without that nothing is mounted.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sys::mount::Propagation;

use crate::args::Launch;

/// Becomes the runtime; returns only to say why not. The same is written to the runtime's log, where the monitor looks.
pub(crate) fn run(launch: &Launch) -> String {
    let begun = Instant::now();
    let message = match mount_root(launch) {
        Ok(()) => {
            let taken = begun.elapsed().as_micros().to_string();
            // Only a measurement is lost if this fails.
            std::fs::write(mount_time_file(&launch.log), taken).ok();
            become_program(&launch.program)
        }
        Err(message) => message,
    };
    let entry = serde_json::json!({"level": "error", "msg": message}).to_string();
    // The monitor falls back to the exit status if this fails too.
    std::fs::write(&launch.log, entry).ok();
    message
}

/// How long the mount took, in microseconds, as the helper that wrote to `log` left it; 0 when it left nothing.
pub(crate) fn take_mount_time(log: &Path) -> u64 {
    let file = mount_time_file(log);
    let time = std::fs::read_to_string(&file).ok().and_then(|text| text.parse().ok());
    std::fs::remove_file(&file).ok();
    time.unwrap_or(0)
}

fn mount_time_file(log: &Path) -> PathBuf {
    log.with_extension("mounted")
}

fn mount_root(launch: &Launch) -> Result<(), String> {
    sys::process::unshare_mount_namespace().map_err(|error| format!("make a mount namespace: {error}"))?;
    keep_from_host(&launch.target)?;
    let overlay = sys::mount::Overlay {
        lowers: launch.lowers.clone(),
        upper: launch.upper.clone(),
        work: launch.work.clone(),
        readonly: launch.readonly,
    };
    sys::mount::overlay(&overlay, &launch.target).map_err(|error| types::error::chain(&error))
}

/// Refuses to mount where the host would see it: the state directory is a mount of its own, and a private one.
fn keep_from_host(target: &Path) -> Result<(), String> {
    let target = target.canonicalize().map_err(|error| format!("resolve {}: {error}", target.display()))?;
    let mounts = sys::mount::list().map_err(|error| types::error::chain(&error))?;
    let beneath = mounts.iter().filter(|mount| target.starts_with(&mount.mount_point));
    // Of several mounts at one place the last one listed is on top, and the last of equal ones is taken.
    let holder = beneath.max_by_key(|mount| mount.mount_point.as_os_str().len());
    match holder.map(|mount| mount.propagation) {
        Some(Propagation::Private | Propagation::Slave | Propagation::Unbindable) => Ok(()),
        _ => {
            Err("the state directory is not a private mount, so root filesystems would reach the host"
                .to_owned())
        }
    }
}

fn become_program(program: &[OsString]) -> String {
    let Some((path, args)) = program.split_first() else { return "launch needs a program".to_owned() };
    let error = Command::new(path).args(args).exec();
    format!("exec {}: {error}", path.display())
}
