//! Mounts that a container asks for, and their three rules on recursive read-only.

use std::path::PathBuf;

use cri_api::v1;

use super::checks;
use crate::error::SpecError;

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
    /// Path inside the image; empty means its root.
    pub sub_path: String,
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
                sub_path: mount.image_sub_path.clone(),
            }),
            readonly: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            selinux_relabel: mount.selinux_relabel,
            propagation: match mount.propagation() {
                v1::MountPropagation::PropagationPrivate => Propagation::Private,
                v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
                v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
            },
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
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return Err(SpecError::Unavailable {
                what: format!("id-mapped mount {:?}", mount.container_path),
                reason: "user namespaces are not supported",
            });
        }
        Ok(())
    }

    fn check_source(&self, mount: &v1::Mount) -> Result<(), SpecError> {
        if self.image.is_none() {
            if !mount.image_sub_path.is_empty() {
                let reason = "a sub path is given without an image";
                return Err(SpecError::invalid("mount.image_sub_path", &mount.image_sub_path, reason));
            }
            return checks::absolute("mount.host_path", &mount.host_path).map(|_| ());
        }
        if !mount.host_path.is_empty() {
            let reason = "an image mount must not have a host path";
            return Err(SpecError::invalid("mount.host_path", &mount.host_path, reason));
        }
        if !self.readonly {
            let reason = "an image mount must be read-only";
            return Err(SpecError::invalid("mount.container_path", &mount.container_path, reason));
        }
        if !mount.image_sub_path.is_empty() {
            checks::beneath("mount.image_sub_path", &mount.image_sub_path)?;
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mount() -> v1::Mount {
        v1::Mount { container_path: "/data/../vol".into(), host_path: "/srv".into(), ..Default::default() }
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
        let image = || Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() });
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
            ("image and host path", v1::Mount { image: image(), readonly: true, ..mount() }),
            ("writable image", v1::Mount { image: image(), host_path: String::new(), ..mount() }),
            ("sub path without image", v1::Mount { image_sub_path: "a".into(), ..mount() }),
            ("id mapping", v1::Mount { uid_mappings: vec![v1::IdMapping::default()], ..mount() }),
        ];
        for (name, mount) in table {
            assert!(MountRequest::check(&mount).is_err(), "{name} must be refused");
        }
    }
}
