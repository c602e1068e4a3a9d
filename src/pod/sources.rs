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
use super::shared::Shared;

/// The largest seccomp profile that is read.
const PROFILE_LIMIT: u64 = 4 << 20;

/// Found on the host.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) mounts: Vec<ResolvedMount>,
    pub(super) devices: Vec<ResolvedDevice>,
    pub(super) seccomp_profile: Option<Vec<u8>>,
    /// What the CDI devices of the request change.
    pub(super) cdi: cdi::Edits,
}

/// Finds everything that the request names but images, whose sources are handed in, in the order of the request.
pub(super) async fn resolve(
    shared: &Shared,
    request: Arc<ContainerRequest>,
    images: Vec<PathBuf>,
) -> Result<Sources, StepError> {
    let found = find_sources(shared, &request).await?;
    let settings = shared.settings();
    blocking(move || {
        Ok(Sources {
            mounts: resolve_mounts(&request, found, images)?,
            devices: resolve_devices(&request, settings.device_ownership)?,
            seccomp_profile: request
                .seccomp_localhost(&settings.facts.unset_seccomp_profile)
                .map(|path| read_profile(&path))
                .transpose()?,
            cdi: resolve_cdi(&request, &settings.cdi_spec_dirs)?,
        })
    })
    .await
}

/// The profile that a sandbox names, if it names one.
pub(super) async fn read_sandbox_profile(
    request: &SandboxRequest,
    unset: &str,
) -> Result<Option<Vec<u8>>, StepError> {
    match request.seccomp_localhost(unset) {
        Some(path) => blocking(move || read_profile(&path)).await.map(Some),
        None => Ok(None),
    }
}

fn invalid(text: String) -> StepError {
    StepError::Invalid(text)
}

/// The sources of the request's mounts of host paths, in its order. They may lie on file systems that never answer.
async fn find_sources(shared: &Shared, request: &ContainerRequest) -> Result<Vec<PathBuf>, StepError> {
    let mounts = request.mounts().into_iter().filter(|mount| mount.image.is_none());
    let paths: Vec<PathBuf> = mounts.map(|mount| mount.host_path).collect();
    let limit = shared.settings().mount_source_timeout;
    shared.lookups.each(paths, limit, find_source).await
}

fn resolve_mounts(
    request: &ContainerRequest,
    found: Vec<PathBuf>,
    images: Vec<PathBuf>,
) -> Result<Vec<ResolvedMount>, StepError> {
    let (mut found, mut images) = (found.into_iter(), images.into_iter());
    let mut resolved = Vec::new();
    for request in request.mounts() {
        let source = if request.image.is_some() { images.next() } else { found.next() };
        let lost = || invalid(format!("mount {} has no source", request.container_path.display()));
        let source = source.ok_or_else(lost)?;
        if request.image.is_none() {
            check_propagation(&request, &source)?;
        }
        resolved.push(ResolvedMount { request, source });
    }
    Ok(resolved)
}

/// The source with symlinks followed. Both peers make a missing one as a directory, and users rely on it. It is also looked at
/// itself: a file system whose server is gone tells its mount point, and nothing else.
fn find_source(path: &Path) -> Result<PathBuf, StepError> {
    let failed = || StepError::io(format!("mount source {}", path.display()));
    let found = match std::fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_symlink(path) => {
            std::fs::create_dir_all(path)
                .map_err(StepError::io(format!("making mount source {}", path.display())))?;
            std::fs::canonicalize(path).map_err(failed())?
        }
        found => found.map_err(failed())?,
    };
    std::fs::metadata(&found).map_err(failed())?;
    Ok(found)
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
pub(super) fn mount_of<'a>(table: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    let above = table.iter().filter(|entry| path.starts_with(&entry.mount_point));
    above.max_by_key(|entry| entry.mount_point.as_os_str().len())
}

/// What the devices change that the request names by field or annotation; without any no directory is read.
fn resolve_cdi(request: &ContainerRequest, directories: &[PathBuf]) -> Result<cdi::Edits, StepError> {
    let names = cdi::name::requested(request.cdi_devices(), request.annotations())?;
    if names.is_empty() {
        return Ok(cdi::Edits::default());
    }
    Ok(cdi::Registry::load(directories).resolve(&names)?.complete()?)
}

/// The devices of the request, and for a privileged container the host's. They belong to whom they belong to on the host or,
/// if `owned`, those of the request to its user and group.
fn resolve_devices(request: &ContainerRequest, owned: bool) -> Result<Vec<ResolvedDevice>, StepError> {
    let owner = if owned { request.device_owner() } else { (None, None) };
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
        let mut asked = devices.split_off(before);
        for device in &mut asked {
            device.uid = owner.0.unwrap_or(device.uid);
            device.gid = owner.1.unwrap_or(device.gid);
        }
        devices.retain(|device| asked.iter().all(|new| new.path != device.path));
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
        let node = ResolvedDevice::for_request(&one, kind, major, minor, metadata.mode() & 0o777);
        ResolvedDevice { uid: metadata.uid(), gid: metadata.gid(), ..node }
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

    fn request(change: impl FnOnce(&mut cri_api::v1::ContainerConfig)) -> ContainerRequest {
        let mut config = cri_api::v1::ContainerConfig {
            metadata: Some(cri_api::v1::ContainerMetadata { name: "a".into(), attempt: 0 }),
            image: Some(cri_api::v1::ImageSpec { image: "b".into(), ..Default::default() }),
            linux: Some(cri_api::v1::LinuxContainerConfig {
                security_context: Some(cri_api::v1::LinuxContainerSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut config);
        ContainerRequest::parse(config).unwrap()
    }

    fn device_at(path: &Path) -> cri_api::v1::Device {
        let host_path = path.display().to_string();
        cri_api::v1::Device { host_path, container_path: "/dev/mine".into(), permissions: "rw".into() }
    }

    #[test]
    fn a_device_is_found_behind_a_link_and_belongs_to_whom_it_belongs_to() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let with_owner = |user, group| {
            request(|config| {
                config.devices = vec![device_at(&link)];
                let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
                context.run_as_user = Some(cri_api::v1::Int64Value { value: user });
                context.run_as_group = Some(cri_api::v1::Int64Value { value: group });
            })
        };
        let owners = |request: &ContainerRequest, owned| {
            let found = resolve_devices(request, owned).unwrap();
            assert_eq!((found.len(), found[0].path.as_path()), (1, Path::new("/dev/mine")));
            assert_eq!((found[0].major, found[0].minor, found[0].access.as_str()), (1, 3, "rw"));
            (found[0].uid, found[0].gid)
        };
        let host = std::fs::metadata("/dev/null").map(|data| (data.uid(), data.gid())).unwrap();
        assert_eq!(owners(&with_owner(1000, 2000), false), host);
        assert_eq!(owners(&with_owner(1000, 2000), true), (1000, 2000));
        assert_eq!(owners(&with_owner(0, 0), true), host, "root leaves them as they are");
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for path in [dir.path().join("file"), dir.path().to_owned(), dir.path().join("missing")] {
            let request = request(|config| config.devices = vec![device_at(&path)]);
            assert!(resolve_devices(&request, false).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn every_cdi_device_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let asked = request(|config| {
            config.cdi_devices = vec![cri_api::v1::CdiDevice { name: "v/c=a".into() }];
            config.annotations.insert("cdi.k8s.io/x".into(), "v/c=b".into());
        });
        let directories = [dir.path().to_owned()];
        let error = resolve_cdi(&asked, &directories).unwrap_err().to_string();
        assert_eq!(error, "unresolvable CDI devices v/c=a, v/c=b");
        let file = "cdiVersion: 0.3.0\nkind: v/c\ndevices:\n- {name: a, containerEdits: {env: [A=1]}}\n\
                    - {name: b, containerEdits: {env: [B=1]}}\n";
        std::fs::write(dir.path().join("v.yaml"), file).unwrap();
        assert_eq!(resolve_cdi(&asked, &directories).unwrap().env, ["A=1", "B=1"]);
        let unqualified = request(|config| {
            config.cdi_devices = vec![cri_api::v1::CdiDevice { name: "gpu0".into() }];
        });
        assert!(resolve_cdi(&unqualified, &directories).unwrap_err().to_string().contains("gpu0"));
    }

    #[test]
    fn links_are_followed_to_what_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(find_source(&link).unwrap(), dir.path().canonicalize().unwrap());
    }
}
