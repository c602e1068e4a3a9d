//! The two drivers and their common promise.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::bus::SystemdBus;
use crate::error::{BusFault, CgroupError};
use crate::mounts::{Hierarchy, Mounts};
use crate::name;
use crate::property::{Limits, Property, differing, properties};
use crate::tree::{Contents, Tree, restore};

/// Who manages groups on this node; kubelet must be set to the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DriverKind {
    /// systemd makes slices and scopes.
    Systemd,
    /// Groups are directories, made by whoever needs them.
    Cgroupfs,
}

impl DriverKind {
    /// The driver that suits this host: [`DriverKind::Systemd`] where systemd is the first process.
    #[must_use]
    pub fn detect() -> Self {
        Self::detect_at(Path::new("/"))
    }

    /// As [`DriverKind::detect`], for a host whose root directory is `root`. What cannot be read counts as absent.
    #[must_use]
    pub fn detect_at(root: &Path) -> Self {
        let booted = root.join("run/systemd/system").is_dir();
        let first = std::fs::read_to_string(root.join("proc/1/comm")).unwrap_or_default();
        if booted && first.trim_end() == "systemd" { Self::Systemd } else { Self::Cgroupfs }
    }

    /// The name kubelet and the configuration use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Cgroupfs => "cgroupfs",
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Systemd => Self::Cgroupfs,
            Self::Cgroupfs => Self::Systemd,
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DriverKind {
    type Err = CgroupError;

    fn from_str(text: &str) -> Result<Self, CgroupError> {
        match text {
            "systemd" => Ok(Self::Systemd),
            "cgroupfs" => Ok(Self::Cgroupfs),
            _ => Err(CgroupError::name(text, "the drivers are systemd and cgroupfs")),
        }
    }
}

/// What the server asks of control groups. `parent` is what kubelet wrote into the pod's configuration, `oci_path` what
/// [`CgroupDriver::oci_path`] made of it.
#[async_trait]
pub trait CgroupDriver: Send + Sync + fmt::Debug {
    /// Which driver this is.
    fn kind(&self) -> DriverKind;

    /// The `cgroupsPath` of the OCI runtime specification for the group `id` below `parent`, or below a default.
    ///
    /// # Errors
    /// [`CgroupError::OtherDriver`] when `parent` is written for the other driver, [`CgroupError::Name`] when it or `id` can
    /// be no name.
    fn oci_path(&self, parent: Option<&str>, id: &str) -> Result<String, CgroupError>;

    /// Every directory that the group has at present, one for each hierarchy that knows it. None for what is no name.
    fn directories(&self, oci_path: &str) -> Vec<PathBuf>;

    /// Every group, wherever it lies, that is named as this driver names that of an id of 64 hexadecimal digits: the id, and
    /// what [`CgroupDriver::oci_path`] gave for it. Groups in such a group are not among them. Whose ids these are is not
    /// known here.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when a group cannot be read.
    fn groups(&self) -> Result<Vec<(String, String)>, CgroupError>;

    /// Which groups [`CgroupDriver::ensure_parent`] would make, outermost first: what to write down before it makes them and
    /// to hand to [`CgroupDriver::remove_parent_if_empty`] later, innermost first. Groups that exist in any hierarchy are
    /// somebody else's and are not among them.
    ///
    /// # Errors
    /// As for [`CgroupDriver::oci_path`].
    fn missing_parents(&self, parent: Option<&str>) -> Result<Vec<String>, CgroupError>;

    /// Makes the parent where nobody has. systemd makes slices itself when a scope needs them, in the same transaction, so
    /// the systemd driver leaves it to that.
    ///
    /// # Errors
    /// As for [`CgroupDriver::oci_path`], and [`CgroupError::Step`] when the kernel refuses.
    fn ensure_parent(&self, parent: Option<&str>) -> Result<(), CgroupError>;

    /// Removes a parent that has neither processes nor groups in it; says whether it is gone. Never removes more than that
    /// one group. Nothing may be starting in it meanwhile.
    ///
    /// # Errors
    /// As for [`CgroupDriver::ensure_parent`], and those of [`SystemdBus::stop`].
    async fn remove_parent_if_empty(&self, parent: &str) -> Result<bool, CgroupError>;

    /// Has whoever manages groups forget this one, whose processes have been killed: a scope that outlived its OCI runtime
    /// is stopped and its failure forgotten. A missing one is a success, and nobody manages groups of the cgroupfs driver.
    ///
    /// # Errors
    /// [`CgroupError::Name`] when `oci_path` is none, and those of [`SystemdBus::stop`].
    async fn release(&self, oci_path: &str) -> Result<(), CgroupError>;

    /// Has whoever manages groups forget those of this server that have failed or ended and that nobody will ask for again;
    /// says how many there were.
    ///
    /// # Errors
    /// Those of [`SystemdBus::forget_ended`].
    async fn forget_ended(&self) -> Result<usize, CgroupError>;

    /// Tells whoever manages groups of limits that one has got, as far as it does not know them, lest it restore the old ones.
    /// The files come first: on v1 systemd knows nothing of swap, and the kernel refuses more memory than memory and swap
    /// together. Nobody manages groups of the cgroupfs driver.
    ///
    /// # Errors
    /// [`CgroupError::Value`] for limits that cannot be read, and those of [`SystemdBus::limits`] and
    /// [`SystemdBus::set_properties`].
    async fn announce_limits(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError>;

    /// The limits of the group as its files hold them, those called `others` included, and as whoever manages groups does.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when a file cannot be read, and those of [`SystemdBus::limits`].
    async fn save_limits(&self, oci_path: &str, others: &[String]) -> Result<SavedLimits, CgroupError>;

    /// Puts back whatever has changed since `saved`. A group that is gone meanwhile has nothing to be put back.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when a file cannot be written, and those of [`SystemdBus::set_properties`].
    async fn restore_limits(&self, oci_path: &str, saved: &SavedLimits) -> Result<(), CgroupError>;

    /// To be called before an OCI runtime is asked to change the group's limits to these: it may find less room than it
    /// needs, and v2 kills where v1 refuses.
    ///
    /// # Errors
    /// [`CgroupError::MemoryInUse`], and [`CgroupError::Step`] when the group cannot be read.
    fn make_room(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError>;

    /// To be called after an OCI runtime has changed the group's limits: writes the huge page limits among these, which not
    /// every runtime does.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the kernel refuses.
    fn set_hugepages(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError>;

    /// Gives the processes of the group, and of all groups in it, whose score for the out-of-memory killer is `from` the score
    /// `to`.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the kernel refuses.
    fn set_oom_score(&self, oci_path: &str, from: i32, to: i32) -> Result<(), CgroupError>;

    /// The processes of the group and of all groups in it, in ascending order; none when there is no such group.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the group cannot be read.
    fn processes(&self, oci_path: &str) -> Result<Vec<i32>, CgroupError>;

    /// Kills every process of the group and of all groups in it, frozen ones included, and waits until they are gone, at most
    /// ten seconds.
    ///
    /// # Errors
    /// [`CgroupError::StillRunning`] when some are not gone by then.
    fn kill_all(&self, oci_path: &str) -> Result<(), CgroupError>;

    /// Removes the group and all groups in it from every hierarchy, waiting at most five seconds for processes that are just
    /// ending. A missing group is a success.
    ///
    /// # Errors
    /// [`CgroupError::Step`] for the first directory that stays; the others are removed all the same.
    fn remove(&self, oci_path: &str) -> Result<(), CgroupError>;
}

/// The driver of this kind for the hierarchies mounted at or below `root`, usually [`crate::DEFAULT_ROOT`].
///
/// # Errors
/// [`CgroupError::NotMounted`] when there are none.
pub fn open(kind: DriverKind, root: &Path) -> Result<Arc<dyn CgroupDriver>, CgroupError> {
    let mounts = Mounts::under(root)?;
    Ok(match kind {
        DriverKind::Systemd => Arc::new(Systemd::new(mounts, SystemdBus::system())),
        DriverKind::Cgroupfs => Arc::new(Cgroupfs::new(mounts)),
    })
}

/// What [`CgroupDriver::save_limits`] saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedLimits {
    files: Contents,
    properties: Vec<Property>,
}

/// The driver that names groups by path.
#[derive(Debug)]
pub struct Cgroupfs {
    tree: Tree,
}

/// The driver that names groups by unit. The OCI runtime asks systemd for the scope; everything else that systemd has to be
/// told is told here.
#[derive(Debug)]
pub struct Systemd {
    tree: Arc<Tree>,
    hierarchy: Hierarchy,
    bus: SystemdBus,
}

impl Cgroupfs {
    /// A driver for these hierarchies.
    #[must_use]
    pub fn new(mounts: Mounts) -> Self {
        Self { tree: Tree::new(mounts) }
    }
}

impl Systemd {
    /// A driver for these hierarchies and the manager at this bus.
    #[must_use]
    pub fn new(mounts: Mounts, bus: SystemdBus) -> Self {
        Self { hierarchy: mounts.hierarchy(), tree: Arc::new(Tree::new(mounts)), bus }
    }

    /// Has systemd know these properties of a scope; what it knows already is not said again.
    async fn tell(&self, scope: &str, wanted: Vec<Property>) -> Result<(), CgroupError> {
        let news = differing(wanted, &self.bus.limits(scope).await?);
        if news.is_empty() { Ok(()) } else { self.bus.set_properties(scope, &news).await }
    }

    async fn in_tree<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tree) -> Result<T, CgroupError> + Send + 'static,
    ) -> Result<T, CgroupError> {
        let tree = Arc::clone(&self.tree);
        let done = tokio::task::spawn_blocking(move || work(&tree)).await;
        done.unwrap_or_else(|error| {
            Err(CgroupError::step(
                "work on cgroups in",
                Path::new(crate::DEFAULT_ROOT),
                io::Error::other(error),
            ))
        })
    }
}

/// What does not depend on who makes parents.
macro_rules! common {
    ($kind:expr) => {
        fn kind(&self) -> DriverKind {
            $kind
        }

        fn oci_path(&self, parent: Option<&str>, id: &str) -> Result<String, CgroupError> {
            name::oci_path($kind, parent, id)
        }

        fn directories(&self, oci_path: &str) -> Vec<PathBuf> {
            name::relative($kind, oci_path).map(|path| self.tree.existing(&path)).unwrap_or_default()
        }

        fn groups(&self) -> Result<Vec<(String, String)>, CgroupError> {
            self.tree.named(|path| name::named($kind, path))
        }

        fn processes(&self, oci_path: &str) -> Result<Vec<i32>, CgroupError> {
            self.tree.processes(&name::relative($kind, oci_path)?)
        }

        fn kill_all(&self, oci_path: &str) -> Result<(), CgroupError> {
            self.tree.kill_all(&name::relative($kind, oci_path)?)
        }

        fn remove(&self, oci_path: &str) -> Result<(), CgroupError> {
            self.tree.remove(&name::relative($kind, oci_path)?)
        }

        fn make_room(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError> {
            self.tree.make_room(&name::relative($kind, oci_path)?, limits)
        }

        fn set_hugepages(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError> {
            self.tree.set_hugepages(&name::relative($kind, oci_path)?, &limits.hugepages)
        }

        fn set_oom_score(&self, oci_path: &str, from: i32, to: i32) -> Result<(), CgroupError> {
            self.tree.set_oom_score(&name::relative($kind, oci_path)?, from, to)
        }
    };
}

#[async_trait]
impl CgroupDriver for Cgroupfs {
    common!(DriverKind::Cgroupfs);

    fn missing_parents(&self, parent: Option<&str>) -> Result<Vec<String>, CgroupError> {
        let parent = name::parent(self.kind(), parent)?;
        let missing = self.tree.missing(&name::relative(self.kind(), &parent)?);
        Ok(missing.iter().map(|path| format!("/{}", path.display())).collect())
    }

    fn ensure_parent(&self, parent: Option<&str>) -> Result<(), CgroupError> {
        let parent = name::parent(self.kind(), parent)?;
        let missing = self.tree.missing(&name::relative(self.kind(), &parent)?);
        missing.iter().try_for_each(|path| self.tree.make(path))
    }

    async fn remove_parent_if_empty(&self, parent: &str) -> Result<bool, CgroupError> {
        let parent = name::parent(self.kind(), Some(parent))?;
        self.tree.remove_if_empty(&name::relative(self.kind(), &parent)?)
    }

    async fn release(&self, oci_path: &str) -> Result<(), CgroupError> {
        name::relative(self.kind(), oci_path).map(drop)
    }

    async fn forget_ended(&self) -> Result<usize, CgroupError> {
        Ok(0)
    }

    async fn announce_limits(&self, oci_path: &str, _limits: &Limits) -> Result<(), CgroupError> {
        name::relative(self.kind(), oci_path).map(drop)
    }

    async fn save_limits(&self, oci_path: &str, others: &[String]) -> Result<SavedLimits, CgroupError> {
        let files = self.tree.limits(&name::relative(self.kind(), oci_path)?, others)?;
        Ok(SavedLimits { files, properties: Vec::new() })
    }

    async fn restore_limits(&self, _oci_path: &str, saved: &SavedLimits) -> Result<(), CgroupError> {
        restore(&saved.files)
    }
}

#[async_trait]
impl CgroupDriver for Systemd {
    common!(DriverKind::Systemd);

    fn missing_parents(&self, parent: Option<&str>) -> Result<Vec<String>, CgroupError> {
        let slice = name::parent(self.kind(), parent)?;
        let missing = self.tree.missing(&name::slice_path(&slice)?);
        Ok(missing.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn ensure_parent(&self, parent: Option<&str>) -> Result<(), CgroupError> {
        name::parent(self.kind(), parent).map(drop)
    }

    async fn remove_parent_if_empty(&self, parent: &str) -> Result<bool, CgroupError> {
        let slice = name::parent(self.kind(), Some(parent))?;
        let path = name::slice_path(&slice)?;
        let looked_at = path.clone();
        // Stopping a slice stops what is in it.
        if !self.in_tree(move |tree| tree.is_empty(&looked_at)).await? {
            return Ok(false);
        }
        self.bus.stop(&slice).await?;
        // Directories in hierarchies that systemd does not use are the OCI runtime's, and systemd leaves them.
        self.in_tree(move |tree| tree.remove_if_empty(&path)).await
    }

    async fn release(&self, oci_path: &str) -> Result<(), CgroupError> {
        self.bus.stop(&name::scope(oci_path)?).await
    }

    async fn forget_ended(&self) -> Result<usize, CgroupError> {
        self.bus.forget_ended(name::SCOPE_PATTERN).await
    }

    async fn announce_limits(&self, oci_path: &str, limits: &Limits) -> Result<(), CgroupError> {
        let scope = name::scope(oci_path)?;
        self.tell(&scope, properties(self.hierarchy, limits)?).await
    }

    async fn save_limits(&self, oci_path: &str, others: &[String]) -> Result<SavedLimits, CgroupError> {
        let (path, others) = (name::relative(self.kind(), oci_path)?, others.to_vec());
        let files = self.in_tree(move |tree| tree.limits(&path, &others)).await?;
        Ok(SavedLimits { files, properties: self.bus.limits(&name::scope(oci_path)?).await? })
    }

    /// The files come last: systemd rounds quotas.
    async fn restore_limits(&self, oci_path: &str, saved: &SavedLimits) -> Result<(), CgroupError> {
        let told = self.tell(&name::scope(oci_path)?, saved.properties.clone()).await;
        let files = saved.files.clone();
        self.in_tree(move |_| restore(&files)).await?;
        match told {
            Err(CgroupError::Bus { fault: BusFault::NoUnit, .. }) => Ok(()),
            told => told,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_chosen_only_where_it_is_the_first_process() {
        let host = tempfile::tempdir().unwrap();
        let of = || DriverKind::detect_at(host.path());
        assert_eq!(of(), DriverKind::Cgroupfs);
        std::fs::create_dir_all(host.path().join("proc/1")).unwrap();
        std::fs::write(host.path().join("proc/1/comm"), "systemd\n").unwrap();
        assert_eq!(of(), DriverKind::Cgroupfs, "a container's init may be called so");
        std::fs::create_dir_all(host.path().join("run/systemd/system")).unwrap();
        assert_eq!(of(), DriverKind::Systemd);
        std::fs::write(host.path().join("proc/1/comm"), "init\n").unwrap();
        assert_eq!(of(), DriverKind::Cgroupfs);
    }

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for kind in [DriverKind::Systemd, DriverKind::Cgroupfs] {
            assert_eq!(kind.to_string().parse::<DriverKind>().unwrap(), kind);
        }
        assert!("Systemd".parse::<DriverKind>().unwrap_err().to_string().contains("systemd and cgroupfs"));
    }
}
