//! Mounts that a container asks for, and their rules: three on recursive read-only, five on images.

use std::path::{Component, Path, PathBuf};

use cri_api::v1;

use super::checks;
use crate::error::SpecError;
use crate::userns::{self, UserNamespace};

/// Which way mounts made later travel between host and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the host into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// An image shown as a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMount {
    /// Image reference or id.
    pub image: String,
    /// Directory inside the image, relative to its root and without `.` and `..`; empty for the root itself.
    pub sub_path: PathBuf,
}

/// One mount of a container request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Where the container sees it; absolute and clean.
    pub container_path: PathBuf,
    /// What to bind; empty for an image mount.
    pub host_path: PathBuf,
    /// The image to show instead of a host path.
    pub image: Option<ImageMount>,
    /// No writing through this mount.
    pub readonly: bool,
    /// No writing through any mount below it either.
    pub recursive_read_only: bool,
    /// Change the SELinux label of the source's files.
    pub selinux_relabel: bool,
    /// Which way later mounts travel.
    pub propagation: Propagation,
    /// The ids that the files' owners on disk are shown as; none to show them as they are.
    pub ids: Option<UserNamespace>,
}

impl MountRequest {
    /// Reads one mount; what it says is not checked.
    pub(crate) fn read(mount: &v1::Mount) -> Self {
        let image = mount.image.as_ref().filter(|image| !image.image.is_empty());
        Self {
            container_path: checks::clean_absolute(&mount.container_path),
            host_path: PathBuf::from(&mount.host_path),
            image: image.map(|image| ImageMount {
                image: image.image.clone(),
                sub_path: sub_path(&mount.image_sub_path).unwrap_or_default(),
            }),
            readonly: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            selinux_relabel: mount.selinux_relabel,
            // Nothing is ever mounted beneath an image on the host, so nothing can come from there.
            propagation: if image.is_some() { Propagation::Private } else { propagation(mount) },
            ids: userns::of_mount(mount).unwrap_or_default(),
        }
    }

    /// Applies the rules that need nothing but the mount.
    pub(crate) fn check(mount: &v1::Mount) -> Result<(), SpecError> {
        checks::absolute("mount.container_path", &mount.container_path)?;
        if v1::MountPropagation::try_from(mount.propagation).is_err() {
            let value = mount.propagation.to_string();
            return Err(SpecError::invalid("mount.propagation", value, "it is not a propagation mode"));
        }
        let request = Self::read(mount);
        if request.container_path.parent().is_none() {
            let reason = "the root of the container cannot be a mount";
            return Err(SpecError::invalid("mount.container_path", &mount.container_path, reason));
        }
        request.check_source(mount)?;
        request.check_recursive_read_only()?;
        userns::of_mount(mount).map(drop)
    }

    fn check_source(&self, mount: &v1::Mount) -> Result<(), SpecError> {
        if self.image.is_none() {
            if !mount.image_sub_path.is_empty() {
                let reason = "a sub path is given without an image";
                return Err(SpecError::invalid("mount.image_sub_path", &mount.image_sub_path, reason));
            }
            return checks::absolute("mount.host_path", &mount.host_path).map(|_| ());
        }
        let refused = |reason| Err(SpecError::ImageVolume { path: mount.container_path.clone(), reason });
        if !mount.host_path.is_empty() {
            return refused("an image and a host path exclude each other");
        }
        if !self.readonly {
            return refused("an image can only be mounted read-only");
        }
        if mount.propagation() == v1::MountPropagation::PropagationBidirectional {
            return refused("no mounts can travel from an image to the host");
        }
        match sub_path(&mount.image_sub_path) {
            Ok(_) => Ok(()),
            Err(reason) => refused(reason),
        }
    }

    fn check_recursive_read_only(&self) -> Result<(), SpecError> {
        let refused = |reason| {
            Err(SpecError::invalid(
                "mount.recursive_read_only",
                self.container_path.display().to_string(),
                reason,
            ))
        };
        match (self.recursive_read_only, self.readonly, self.propagation) {
            (false, ..) | (true, true, Propagation::Private) => Ok(()),
            (true, false, _) => refused("it needs readonly"),
            (true, true, _) => refused("it needs private propagation"),
        }
    }
}

fn propagation(mount: &v1::Mount) -> Propagation {
    match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    }
}

/// A path inside an image, by text: a leading slash means the image's root, as everything does that names no directory.
fn sub_path(path: &str) -> Result<PathBuf, &'static str> {
    if path.contains('\0') {
        return Err("the sub path contains a zero byte");
    }
    let mut relative = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err("the sub path must not contain .."),
        }
    }
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount() -> v1::Mount {
        v1::Mount { container_path: "/data/../vol".into(), host_path: "/srv".into(), ..Default::default() }
    }

    fn image_mount() -> v1::Mount {
        let image = Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() });
        v1::Mount { image, readonly: true, host_path: String::new(), ..mount() }
    }

    #[test]
    fn a_plain_mount_is_private_and_writable() {
        MountRequest::check(&mount()).unwrap();
        let parsed = MountRequest::read(&mount());
        assert_eq!(parsed.container_path, PathBuf::from("/vol"));
        assert_eq!(parsed.propagation, Propagation::Private);
        assert!(!parsed.readonly);
    }

    #[test]
    fn bad_mounts_are_refused() {
        let table: Vec<(&str, v1::Mount)> = vec![
            ("relative container path", v1::Mount { container_path: "vol".into(), ..mount() }),
            ("the root", v1::Mount { container_path: "/vol/..".into(), ..mount() }),
            ("no container path", v1::Mount { container_path: String::new(), ..mount() }),
            ("no host path", v1::Mount { host_path: String::new(), ..mount() }),
            ("relative host path", v1::Mount { host_path: "srv".into(), ..mount() }),
            ("unknown propagation", v1::Mount { propagation: 7, ..mount() }),
            ("rro but writable", v1::Mount { recursive_read_only: true, ..mount() }),
            (
                "rro but rslave",
                v1::Mount { recursive_read_only: true, readonly: true, propagation: 1, ..mount() },
            ),
            ("image and host path", v1::Mount { host_path: "/srv".into(), ..image_mount() }),
            ("writable image", v1::Mount { readonly: false, ..image_mount() }),
            ("image with bidirectional propagation", v1::Mount { propagation: 2, ..image_mount() }),
            ("sub path without image", v1::Mount { image_sub_path: "a".into(), ..mount() }),
            ("sub path that leaves", v1::Mount { image_sub_path: "../a".into(), ..image_mount() }),
            (
                "absolute sub path that leaves",
                v1::Mount { image_sub_path: "/a/../b".into(), ..image_mount() },
            ),
            ("sub path with a zero byte", v1::Mount { image_sub_path: "a\0".into(), ..image_mount() }),
            ("id mapping", v1::Mount { uid_mappings: vec![v1::IdMapping::default()], ..mount() }),
        ];
        for (name, mount) in table {
            let error = MountRequest::check(&mount).expect_err(name).to_string();
            assert_eq!(
                error.starts_with("ImageVolumeMountFailed: "),
                mount.image.is_some(),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn a_sub_path_is_a_directory_beneath_the_image() {
        for (path, expected) in [
            ("", ""),
            (".", ""),
            ("/", ""),
            ("etc", "etc"),
            ("/etc//x/./y/", "etc/x/y"),
            ("..a/b..", "..a/b.."),
        ] {
            let mount = v1::Mount { image_sub_path: path.into(), ..image_mount() };
            MountRequest::check(&mount).unwrap();
            assert_eq!(MountRequest::read(&mount).image.unwrap().sub_path, Path::new(expected), "{path:?}");
        }
    }

    #[test]
    fn an_image_takes_no_part_in_propagation_and_is_read_only_with_all_below() {
        let mount = v1::Mount { propagation: 1, recursive_read_only: true, ..image_mount() };
        MountRequest::check(&mount).unwrap();
        assert_eq!(MountRequest::read(&mount).propagation, Propagation::Private);
    }
}
