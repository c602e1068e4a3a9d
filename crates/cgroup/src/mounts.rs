//! Which cgroup hierarchies this host has, and where.

use std::path::{Path, PathBuf};

use sys::mount::MountEntry;

use crate::error::CgroupError;

/// Where every distribution mounts cgroups.
pub const DEFAULT_ROOT: &str = "/sys/fs/cgroup";

/// How a host is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// One hierarchy for each controller or group of controllers.
    V1,
    /// Controllers as in [`Hierarchy::V1`], and a unified hierarchy without controllers beside them. OCI runtimes treat it
    /// like v1.
    Hybrid,
    /// One hierarchy for all controllers.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its v1 controllers or its name (`name=systemd`); empty for the unified hierarchy.
    pub controllers: Vec<String>,
    /// Whether it is the unified hierarchy.
    pub unified: bool,
}

/// The hierarchies of a host, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    mounts: Vec<Mount>,
}

/// How this host is set up.
///
/// # Errors
/// [`CgroupError`] when no hierarchy is mounted below [`DEFAULT_ROOT`].
pub fn detect() -> Result<Hierarchy, CgroupError> {
    Ok(Mounts::under(Path::new(DEFAULT_ROOT))?.hierarchy())
}

impl Mounts {
    /// The hierarchies mounted at or below `root` of this host.
    ///
    /// # Errors
    /// [`CgroupError`] when there is none or the mount table cannot be read.
    pub fn under(root: &Path) -> Result<Self, CgroupError> {
        Self::among(&sys::mount::list().map_err(CgroupError::Mounts)?, root)
    }

    /// The hierarchies at or below `root` in a mount table.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`] when there is none.
    pub fn among(table: &[MountEntry], root: &Path) -> Result<Self, CgroupError> {
        let mut mounts: Vec<Mount> = Vec::new();
        for entry in table.iter().filter(|entry| entry.mount_point.starts_with(root)) {
            let Some(mount) = hierarchy_of(entry) else { continue };
            let seen = |m: &Mount| m.unified == mount.unified && m.controllers == mount.controllers;
            if !mounts.iter().any(seen) {
                mounts.push(mount);
            }
        }
        if mounts.is_empty() {
            Err(CgroupError::NotMounted { root: root.to_owned() })
        } else {
            Ok(Self { mounts })
        }
    }

    /// How the host is set up.
    #[must_use]
    pub fn hierarchy(&self) -> Hierarchy {
        match (self.unified().is_some(), self.mounts.iter().any(|mount| !mount.unified)) {
            (true, true) => Hierarchy::Hybrid,
            (true, false) => Hierarchy::V2,
            (false, _) => Hierarchy::V1,
        }
    }

    /// Every hierarchy.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The unified hierarchy.
    #[must_use]
    pub fn unified(&self) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.unified)
    }

    /// The v1 hierarchy that has `controller`.
    #[must_use]
    pub fn of_controller(&self, controller: &str) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.controllers.iter().any(|name| name == controller))
    }
}

fn hierarchy_of(entry: &MountEntry) -> Option<Mount> {
    let unified = match entry.fstype.as_str() {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let controllers = if unified { Vec::new() } else { controllers(&entry.options) };
    Some(Mount { path: entry.mount_point.clone(), controllers, unified })
}

/// A v1 mount lists its controllers, or its name, among the options of any mount.
fn controllers(options: &str) -> Vec<String> {
    const GENERAL: [&str; 17] = [
        "rw",
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "relatime",
        "noatime",
        "nodiratime",
        "strictatime",
        "lazytime",
        "sync",
        "dirsync",
        "nosymfollow",
        "xattr",
        "clone_children",
        "noprefix",
        "cpuset_v2_mode",
    ];
    let is_controller = |option: &&str| !GENERAL.contains(option) && !option.starts_with("release_agent=");
    options.split(',').filter(is_controller).map(str::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use sys::mount::Propagation;

    use super::*;

    /// A table with one v1 hierarchy for each of `names`, and a unified one at `unified`, below `root`.
    pub(crate) fn table(root: &Path, names: &[&str], unified: Option<&str>) -> Vec<MountEntry> {
        let entry = |fstype: &str, place: PathBuf, options: String| MountEntry {
            id: 1,
            parent: 0,
            root: PathBuf::from("/"),
            mount_point: place,
            fstype: fstype.to_owned(),
            source: PathBuf::from(fstype),
            options,
            propagation: Propagation::Private,
        };
        let mut table = vec![entry("tmpfs", root.to_owned(), "rw,mode=755".to_owned())];
        table.extend(names.iter().map(|name| {
            entry(
                "cgroup",
                root.join(name.trim_start_matches("name=")),
                format!("rw,nosuid,relatime,rw,xattr,{name}"),
            )
        }));
        table.extend(unified.map(|place| entry("cgroup2", root.join(place), "rw,rw,nsdelegate".to_owned())));
        table
    }

    #[test]
    fn each_layout_is_recognised() {
        let root = Path::new("/x");
        let of = |names: &[&str], unified| Mounts::among(&table(root, names, unified), root).unwrap();
        assert_eq!(of(&[], Some("")).hierarchy(), Hierarchy::V2);
        assert_eq!(of(&["cpu,cpuacct", "pids"], None).hierarchy(), Hierarchy::V1);
        let hybrid = of(&["cpu,cpuacct", "pids", "name=systemd"], Some("unified"));
        assert_eq!(hybrid.hierarchy(), Hierarchy::Hybrid);
        assert_eq!(hybrid.of_controller("cpuacct").unwrap().path, Path::new("/x/cpu,cpuacct"));
        assert_eq!(hybrid.of_controller("name=systemd").unwrap().path, Path::new("/x/systemd"));
        assert!(hybrid.of_controller("memory").is_none());
        assert_eq!(hybrid.unified().unwrap().path, Path::new("/x/unified"));
    }

    #[test]
    fn a_hierarchy_counts_once_and_only_below_the_root() {
        let root = Path::new("/x");
        let mut twice = table(root, &["pids"], None);
        twice.extend(table(&root.join("again"), &["pids"], None));
        assert_eq!(Mounts::among(&twice, root).unwrap().iter().count(), 1);
        let error = Mounts::among(&twice, Path::new("/elsewhere")).unwrap_err();
        assert!(error.to_string().contains("/elsewhere"), "{error}");
    }

    #[test]
    fn this_host_has_a_hierarchy() {
        let mounts = Mounts::under(Path::new(DEFAULT_ROOT)).unwrap();
        assert_eq!(mounts.hierarchy(), detect().unwrap());
        if mounts.hierarchy() != Hierarchy::V2 {
            let memory = mounts.of_controller("memory").unwrap();
            assert!(memory.path.join("memory.limit_in_bytes").try_exists().unwrap());
        }
    }
}
