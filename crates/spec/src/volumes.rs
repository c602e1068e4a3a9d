//! Which volumes of its image a container gets.
//!
//! An image may declare paths whose data should not lie in the writable layer. Each becomes a directory of the container's own,
//! unless something is mounted there anyway: by the request, at the path or above it, so that an anonymous directory never hides
//! what somebody mounted to keep; or by every container, such as `/proc`. The paths are a stranger's: they are cleaned by text, and
//! whoever looks them up in the image does so beneath its root.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use crate::error::SpecError;
use crate::mounts;
use crate::request::{ContainerRequest, clean_absolute};

/// More mounts than this for one image are taken for an attack.
const MAX_VOLUMES: usize = 128;

/// The paths in the container, parents before what lies below them, each once.
///
/// # Errors
/// [`SpecError::Invalid`] when the image declares its root, or more volumes than anybody needs.
pub fn declared(image: &ImageConfiguration, request: &ContainerRequest) -> Result<Vec<PathBuf>, SpecError> {
    const FIELD: &str = "volume of the image";
    let paths = image.config().as_ref().and_then(|config| config.volumes().as_deref()).unwrap_or_default();
    if paths.len() > MAX_VOLUMES {
        return Err(SpecError::invalid(FIELD, paths.len().to_string(), "an image can declare 128 at most"));
    }
    let mut volumes = BTreeSet::new();
    for path in paths {
        if path.contains('\0') {
            return Err(SpecError::invalid(FIELD, path, "it contains a zero byte"));
        }
        let volume = clean_absolute(path);
        if volume.parent().is_none() {
            return Err(SpecError::invalid(FIELD, path, "the root of the container cannot be a volume"));
        }
        volumes.insert(volume);
    }
    let mounted: Vec<PathBuf> = request.mounts().into_iter().map(|mount| mount.container_path).collect();
    volumes.retain(|volume| !is_covered(volume, &mounted) && !mounts::is_standard(volume));
    Ok(volumes.into_iter().collect())
}

fn is_covered(volume: &Path, mounted: &[PathBuf]) -> bool {
    mounted.iter().any(|mount| volume.starts_with(mount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn of(paths: &[&str], mounted: &[&str]) -> Result<Vec<String>, String> {
        let mut image = fixtures::image();
        let mut config = image.config().clone().unwrap();
        config.set_volumes(Some(paths.iter().map(|path| (*path).to_owned()).collect()));
        image.set_config(Some(config));
        let mut wanted = fixtures::container();
        wanted.mounts = mounted.iter().map(|path| fixtures::mount(path)).collect();
        let request = ContainerRequest::parse(wanted).unwrap();
        let found = declared(&image, &request).map_err(|error| error.to_string())?;
        Ok(found.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn volumes_are_clean_and_in_order_and_each_once() {
        let found = of(&["/b", "data/", "/b/c/../d", "/b/", "//data"], &[]);
        assert_eq!(found.unwrap(), ["/b", "/b/d", "/data"]);
        assert_eq!(of(&["/../../etc"], &[]).unwrap(), ["/etc"], "by text it cannot climb");
        assert_eq!(of(&[], &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_mounted_anyway_is_no_volume() {
        let declared = ["/data", "/data/db", "/database", "/var/lib/x"];
        assert_eq!(of(&declared, &["/data"]).unwrap(), ["/database", "/var/lib/x"]);
        assert_eq!(of(&declared, &["/var", "/data/db"]).unwrap(), ["/data", "/database"]);
        assert_eq!(of(&["/proc", "/sys", "/dev", "/dev/shm", "/etc/hosts", "/tmp"], &[]).unwrap(), ["/tmp"]);
    }

    #[test]
    fn a_root_and_hundreds_are_refused() {
        for root in ["/", "", "/a/..", "."] {
            assert!(of(&[root], &[]).unwrap_err().contains("volume of the image"), "{root:?}");
        }
        assert!(of(&["/a\0b"], &[]).unwrap_err().contains("zero byte"));
        let many: Vec<String> = (0..129).map(|n| format!("/v{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(of(&many, &[]).unwrap_err().contains("128"));
    }
}
