//! The helper between the monitor and the OCI runtime's `create`.
//!
//! It takes a copy of the host's present mount namespace, so that what kubelet mounted a moment ago is there, mounts the
//! container's root filesystem in it and becomes the runtime. The runtime's child inherits the namespace and copies it into
//! the container's own; when the runtime ends, the copy ends, and the host never had the mount. Propagation is left as it is, so a
//! volume with bidirectional propagation still reaches the host. What keeps the root filesystem from doing the same is
//! that the bundle lies beneath a private mount; without that nothing is mounted.
//!
//! Images that the container has as volumes are mounted in the same namespace, each at a directory of the bundle from which
//! the OCI runtime binds it. Their sub paths are resolved here, beneath the mounted image and by descriptor.
//!
//! For a pod with a user namespace of its own all of these, and volumes that ask for it, are mounted with their ids mapped as
//! that namespace maps them, so that the OCI runtime need not be able to. The namespace itself is bound at a file of the bundle
//! when the pause container is to join it: nothing but the pod's network namespace holds it until then.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use monitor_api::{ImageMount, MappedVolume};
use sys::mount::{Overlay, Propagation};

use crate::args::Launch;

/// Becomes the runtime; returns only to say why not. The same is written to the runtime's log, where the monitor looks.
pub(crate) fn run(launch: &Launch) -> String {
    let begun = Instant::now();
    let message = match mount_all(launch) {
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

fn mount_all(launch: &Launch) -> Result<(), String> {
    sys::process::unshare_mount_namespace().map_err(|error| format!("make a mount namespace: {error}"))?;
    let userns = launch.userns.as_deref().map(find_userns).transpose()?;
    let ids = userns.as_ref().map(OwnedFd::as_fd);
    if !launch.lowers.is_empty() {
        let label = mount_label(&launch.target)?;
        mount_root(launch, label.clone(), ids)?;
        launch.images.iter().try_for_each(|image| mount_image(image, label.clone(), ids))?;
    }
    if let Some(ids) = ids {
        launch.bind_userns.iter().try_for_each(|file| bind_userns(ids, file))?;
        launch.volumes.iter().try_for_each(|volume| mount_volume(volume, ids))?;
    }
    Ok(())
}

fn find_userns(path: &Path) -> Result<OwnedFd, String> {
    sys::userns::owner_of(path)
        .map_err(|error| format!("find the user namespace of {}: {error}", path.display()))
}

/// The SELinux label that `config.json`, beside the root file system, asks for; it has none where there is no SELinux.
fn mount_label(rootfs: &Path) -> Result<Option<String>, String> {
    let config = rootfs.with_file_name("config.json");
    let failed = |error: &dyn std::fmt::Display| format!("read {}: {error}", config.display());
    let text = std::fs::read(&config).map_err(|error| failed(&error))?;
    let spec: serde_json::Value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    Ok(spec["linux"]["mountLabel"].as_str().filter(|label| !label.is_empty()).map(str::to_owned))
}

fn mount_root(launch: &Launch, context: Option<String>, ids: Option<BorrowedFd<'_>>) -> Result<(), String> {
    keep_from_host(&launch.target)?;
    let overlay = Overlay {
        lowers: launch.lowers.clone(),
        upper: launch.upper.clone(),
        work: launch.work.clone(),
        readonly: launch.readonly,
        context,
    };
    mount_overlay(&overlay, &launch.target, ids)
}

fn mount_overlay(overlay: &Overlay, target: &Path, ids: Option<BorrowedFd<'_>>) -> Result<(), String> {
    let mounted = match ids {
        Some(ids) => sys::mount::overlay_mapped(overlay, ids, target),
        None => sys::mount::overlay(overlay, target),
    };
    mounted.map_err(|error| types::error::chain(&error))
}

/// Makes the user namespace a file, which a path can name.
fn bind_userns(userns: BorrowedFd<'_>, file: &Path) -> Result<(), String> {
    make_file(file)?;
    keep_from_host(file)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", userns.as_raw_fd()));
    sys::mount::bind(&source, file).map_err(|error| types::error::chain(&error))
}

fn mount_volume(volume: &MappedVolume, ids: BorrowedFd<'_>) -> Result<(), String> {
    let MappedVolume { source, target } = volume;
    let failed = |error: std::io::Error| format!("mount source {}: {error}", source.display());
    if std::fs::metadata(source).map_err(failed)?.is_dir() {
        std::fs::create_dir_all(target).map_err(|error| format!("make {}: {error}", target.display()))?;
    } else {
        make_file(target)?;
    }
    keep_from_host(target)?;
    sys::mount::bind_mapped(source, ids, target).map_err(|error| types::error::chain(&error))
}

/// Makes an empty file for something to be mounted at.
fn make_file(file: &Path) -> Result<(), String> {
    let parent = file.parent().unwrap_or(file);
    let made = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(file, ""));
    made.map_err(|error| format!("make {}: {error}", file.display()))
}

fn mount_image(
    image: &ImageMount,
    context: Option<String>,
    ids: Option<BorrowedFd<'_>>,
) -> Result<(), String> {
    let target = &image.target;
    std::fs::create_dir_all(target).map_err(|error| format!("make {}: {error}", target.display()))?;
    keep_from_host(target)?;
    let mut lowers = image.layers.clone();
    if context.is_some() && lowers.len() == 1 {
        // What is bound keeps its own labels; with an empty layer beneath it is an overlay.
        let empty = target.with_extension("empty");
        std::fs::create_dir_all(&empty).map_err(|error| format!("make {}: {error}", empty.display()))?;
        lowers.push(empty);
    }
    let overlay = Overlay { lowers, readonly: true, context, ..Overlay::default() };
    mount_overlay(&overlay, target, ids)?;
    // A single layer is bound, and a bind mount is a peer of the mount it comes from: what covers it would cover the layer on
    // the host, too.
    sys::mount::make_private(target).map_err(|error| types::error::chain(&error))?;
    if image.sub_path.as_os_str().is_empty() { Ok(()) } else { narrow(target, &image.sub_path) }
}

/// Covers the image mounted at `target` by one of its directories; the new mount is read-only as the one it is part of.
fn narrow(target: &Path, sub_path: &Path) -> Result<(), String> {
    let narrowed = || -> Result<(), Box<dyn std::error::Error>> {
        let found = sys::beneath::Root::open(target)?.find(sub_path)?;
        let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        Ok(sys::mount::bind(&source, target)?)
    };
    narrowed().map_err(|error| {
        format!("sub path {} of an image: {}", sub_path.display(), types::error::chain(&*error))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_the_one_in_the_bundles_spec() {
        let bundle = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(bundle.path().join("config.json"), text).unwrap();
        let label = || mount_label(&bundle.path().join("rootfs"));
        assert!(label().unwrap_err().contains("config.json"));
        write(r#"{"linux":{"mountLabel":"system_u:object_r:container_file_t:s0:c1,c2"}}"#);
        assert_eq!(label().unwrap().as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
        for none in ["{}", r#"{"linux":{"mountLabel":""}}"#, r#"{"linux":{}}"#] {
            write(none);
            assert_eq!(label().unwrap(), None);
        }
        write("{");
        assert!(label().is_err());
    }
}
