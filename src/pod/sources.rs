//! What a container takes from the host: mount sources, devices, seccomp profiles. Found and checked before anything is
//! made.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{major, minor};
use spec::{
    ContainerRequest, DeviceKind, DeviceRequest, MountRequest, Propagation, ResolvedDevice, ResolvedMount,
    SandboxRequest,
};
use sys::mount::{MountEntry, Propagation as Spread};

use super::error::StepError;
use super::record::blocking;

/// The largest seccomp profile that is read.
const PROFILE_LIMIT: u64 = 4 << 20;

/// Found on the host.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) mounts: Vec<ResolvedMount>,
    pub(super) devices: Vec<ResolvedDevice>,
    pub(super) seccomp_profile: Option<Vec<u8>>,
}

/// Finds everything that the request names.
pub(super) async fn resolve(request: Arc<ContainerRequest>) -> Result<Sources, StepError> {
    blocking(move || {
        if let Some(device) = request.cdi_devices().next() {
            return Err(invalid(format!("CDI device {device:?}: CDI is not supported yet")));
        }
        let mounts = request.mounts().into_iter().map(resolve_mount).collect::<Result<_, _>>()?;
        Ok(Sources {
            mounts,
            devices: resolve_devices(&request)?,
            seccomp_profile: request.seccomp_localhost().map(|path| read_profile(&path)).transpose()?,
        })
    })
    .await
}

/// The profile that a sandbox names, if it names one.
pub(super) async fn read_sandbox_profile(request: &SandboxRequest) -> Result<Option<Vec<u8>>, StepError> {
    match request.seccomp_localhost() {
        Some(path) => blocking(move || read_profile(&path)).await.map(Some),
        None => Ok(None),
    }
}

fn invalid(text: String) -> StepError {
    StepError::Invalid(text)
}

fn resolve_mount(request: MountRequest) -> Result<ResolvedMount, StepError> {
    if let Some(image) = &request.image {
        // kubelet matches the first word.
        return Err(invalid(format!(
            "ImageVolumeMountFailed: image {:?}: image volumes are not supported yet",
            image.image
        )));
    }
    let source = find_source(&request.host_path)?;
    check_propagation(&request, &source)?;
    Ok(ResolvedMount { request, source })
}

/// The source with symlinks followed. Both peers make a missing one as a directory, and users rely on it.
fn find_source(path: &Path) -> Result<PathBuf, StepError> {
    match std::fs::canonicalize(path) {
        Ok(found) => Ok(found),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_symlink(path) => {
            std::fs::create_dir_all(path)
                .map_err(StepError::io(format!("making mount source {}", path.display())))?;
            std::fs::canonicalize(path).map_err(StepError::io(format!("mount source {}", path.display())))
        }
        Err(error) => Err(StepError::io(format!("mount source {}", path.display()))(error)),
    }
}

fn is_symlink(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink())
}

/// Mounts can only travel if the source lies on a mount that lets them.
fn check_propagation(request: &MountRequest, source: &Path) -> Result<(), StepError> {
    if request.propagation == Propagation::Private {
        return Ok(());
    }
    let table = sys::mount::list()?;
    let Some(entry) = mount_of(&table, source) else { return Ok(()) };
    let point = entry.mount_point.display();
    let path = request.host_path.display();
    let shared = matches!(entry.propagation, Spread::Shared | Spread::SharedSlave);
    match request.propagation {
        Propagation::Bidirectional if !shared => {
            Err(invalid(format!("path {path} is mounted on {point}, which is not a shared mount")))
        }
        Propagation::HostToContainer if !shared && entry.propagation != Spread::Slave => Err(invalid(
            format!("path {path} is mounted on {point}, which is neither a shared nor a slave mount"),
        )),
        Propagation::Private | Propagation::HostToContainer | Propagation::Bidirectional => Ok(()),
    }
}

/// The mount that `path` lies on: the longest mount point above it, the latest of equals.
fn mount_of<'a>(table: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    let above = table.iter().filter(|entry| path.starts_with(&entry.mount_point));
    above.max_by_key(|entry| entry.mount_point.as_os_str().len())
}

fn resolve_devices(request: &ContainerRequest) -> Result<Vec<ResolvedDevice>, StepError> {
    let mut devices = Vec::new();
    if request.privileged() {
        host_devices(Path::new("/dev"), &mut devices)?;
    }
    for wanted in request.devices() {
        let before = devices.len();
        find_device(&wanted, &wanted.host_path, &wanted.container_path, &mut devices)?;
        if devices.len() == before {
            return Err(invalid(format!("{} is no device and holds none", wanted.host_path.display())));
        }
        // A device that a privileged container has anyway is replaced by what was asked for.
        let (asked, had) = {
            let tail = devices.split_off(before);
            (tail, &mut devices)
        };
        had.retain(|device| asked.iter().all(|new| new.path != device.path));
        devices.extend(asked);
    }
    Ok(devices)
}

fn find_device(
    wanted: &DeviceRequest,
    host: &Path,
    inside: &Path,
    found: &mut Vec<ResolvedDevice>,
) -> Result<(), StepError> {
    let metadata = std::fs::metadata(host).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => invalid(format!("device {} does not exist", host.display())),
        _ => StepError::io(format!("device {}", host.display()))(error),
    })?;
    if metadata.is_dir() {
        for entry in read_dir(host)? {
            let name = entry.file_name();
            let kind = entry.file_type().map_err(StepError::io(format!("device {}", host.display())))?;
            if kind.is_dir() || kind.is_block_device() || kind.is_char_device() {
                find_device(wanted, &host.join(&name), &inside.join(&name), found)?;
            }
        }
        return Ok(());
    }
    let one = DeviceRequest {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: wanted.permissions.clone(),
    };
    found.extend(device(&metadata).map(|(kind, major, minor)| {
        ResolvedDevice::for_request(&one, kind, major, minor, metadata.mode() & 0o777)
    }));
    Ok(())
}

/// Every device node of the host, for privileged containers; what the container has of its own is left out, and so is what is
/// mounted beneath: huge pages and the like are no devices.
fn host_devices(dir: &Path, found: &mut Vec<ResolvedDevice>) -> Result<(), StepError> {
    const OWN: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console"];
    let what = || format!("reading {}", dir.display());
    let filesystem = std::fs::metadata(dir).map_err(StepError::io(what()))?.dev();
    for entry in read_dir(dir)? {
        let path = entry.path();
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        // Nodes come and go; one that has just gone is not a host device any more.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            if metadata.dev() != filesystem {
                continue;
            }
            match host_devices(&path, found) {
                Err(error) if path.try_exists().unwrap_or(true) => return Err(error),
                _ => {}
            }
        } else if let Some((kind, major, minor)) = device(&metadata) {
            let request = DeviceRequest {
                host_path: path.clone(),
                container_path: path,
                permissions: "rwm".to_owned(),
            };
            let mut node = ResolvedDevice::for_request(&request, kind, major, minor, metadata.mode() & 0o777);
            (node.uid, node.gid) = (metadata.uid(), metadata.gid());
            found.push(node);
        }
    }
    Ok(())
}

fn read_dir(dir: &Path) -> Result<Vec<std::fs::DirEntry>, StepError> {
    let what = format!("reading {}", dir.display());
    let entries = std::fs::read_dir(dir).map_err(StepError::io(what.clone()))?;
    entries.collect::<Result<_, _>>().map_err(StepError::io(what))
}

fn device(metadata: &std::fs::Metadata) -> Option<(DeviceKind, i64, i64)> {
    let file = metadata.file_type();
    let kind = match (file.is_block_device(), file.is_char_device()) {
        (true, _) => DeviceKind::Block,
        (_, true) => DeviceKind::Char,
        _ => return None,
    };
    Some((kind, i64::from(major(metadata.rdev())), i64::from(minor(metadata.rdev()))))
}

fn read_profile(path: &str) -> Result<Vec<u8>, StepError> {
    use std::io::Read;
    let what = format!("seccomp profile {path}");
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        // The caller named it, so its absence is the caller's to mend.
        std::io::ErrorKind::NotFound => invalid(format!("{what} does not exist")),
        _ => StepError::io(what.clone())(error),
    })?;
    let mut bytes = Vec::new();
    file.take(PROFILE_LIMIT).read_to_end(&mut bytes).map_err(StepError::io(what))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_source_is_made_and_a_dangling_link_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("a/b");
        assert_eq!(find_source(&missing).unwrap(), missing.canonicalize().unwrap());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        assert!(find_source(&link).is_err());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(find_source(&file.join("beneath-a-file")).is_err());
    }

    #[test]
    fn links_are_followed_to_what_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(find_source(&link).unwrap(), dir.path().canonicalize().unwrap());
    }
}
