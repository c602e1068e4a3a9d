//! Notices when what a directory path means may have changed.
//!
//! A path is followed component by component and link by link, as the kernel does, and each directory on the way is
//! watched for the one name that matters; the directory at the end is watched for all names, and links in it are
//! followed too. So removing the directory, making it again, swapping any link on the way and creating a missing parent
//! are all noticed. A watch is made for one look: after a change a new one is made, and the look comes after it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest as Readiness;
use tokio::io::unix::AsyncFd;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// What happens in a directory that can change the meaning of a path through it. Writing counts when it ends.
fn events() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
}

/// Which names of a watched directory matter.
#[derive(Debug)]
enum Interest {
    All,
    Names(BTreeSet<OsString>),
}

impl Interest {
    fn wants(&self, name: &OsStr) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.contains(name),
        }
    }
}

/// A watch over everything that decides what is in one directory.
#[derive(Debug)]
pub(crate) struct Watch {
    events: AsyncFd<OwnedFd>,
    interests: HashMap<i32, Interest>,
}

impl Watch {
    /// Watches `dir`, which may be missing, wholly or in part.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let mut builder = Builder {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            interests: HashMap::new(),
        };
        if let Some(real) = builder.follow(&std::path::absolute(dir)?)? {
            builder.whole(&real)?;
        }
        Ok(Self { events: registered(builder.inotify)?, interests: builder.interests })
    }

    /// Waits for a change that matters. May be dropped: events that were read and did not matter are forgotten, and one
    /// that matters is returned at once.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            if self.drain()? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Reads every waiting event; whether one mattered.
    fn drain(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(self.events.get_ref(), &mut buffer);
        let mut matters = false;
        loop {
            match reader.next() {
                Ok(event) => matters |= self.matters(event.wd(), event.events(), event.file_name()),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(matters),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn matters(&self, wd: i32, events: ReadFlags, name: Option<&std::ffi::CStr>) -> bool {
        let lost =
            ReadFlags::QUEUE_OVERFLOW | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
        if events.intersects(lost) {
            return true;
        }
        match (self.interests.get(&wd), name) {
            (Some(interest), Some(name)) => interest.wants(OsStr::from_bytes(name.to_bytes())),
            _ => false,
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; what makes it so, a descriptor that changes, an `OwnedFd` cannot do"
)]
fn registered(inotify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(inotify, Readiness::READABLE)
}

struct Builder {
    inotify: OwnedFd,
    interests: HashMap<i32, Interest>,
}

impl Builder {
    /// Watches each directory on the way to `path` for the name taken there; the path without links if it exists.
    fn follow(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut here = PathBuf::from("/");
        let mut ahead = names(path);
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            // Watched before it is looked up: what changes after the look is an event.
            if !self.watch(&here, Interest::Names(BTreeSet::from([name.clone()])))? {
                return Ok(None);
            }
            let next = here.join(&name);
            let Ok(meta) = next.symlink_metadata() else { return Ok(None) };
            if !meta.is_symlink() {
                here = next;
                continue;
            }
            links += 1;
            let Ok(target) = next.read_link() else { return Ok(None) };
            if links > MAX_LINKS {
                return Ok(None);
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            let mut target = names(&target);
            target.append(&mut ahead);
            ahead = target;
        }
        Ok(Some(here))
    }

    /// Watches every name in `dir` and follows the links in it, and the same one level deeper.
    fn whole(&mut self, dir: &Path) -> io::Result<()> {
        if !self.watch(dir, Interest::All)? {
            return Ok(());
        }
        for entry in entries(dir) {
            if entry.is_symlink() {
                self.follow(&entry)?;
            } else if entry.is_dir() {
                self.watch(&entry, Interest::All)?;
            }
        }
        Ok(())
    }

    /// Whether `dir` is a directory that can be watched.
    fn watch(&mut self, dir: &Path, interest: Interest) -> io::Result<bool> {
        use rustix::io::Errno;
        match inotify::add_watch(&self.inotify, dir, events()) {
            Ok(wd) => {
                self.add_interest(wd, interest);
                Ok(true)
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// One directory may be come by twice; the kernel then gives the same watch.
    fn add_interest(&mut self, wd: i32, interest: Interest) {
        match (self.interests.get_mut(&wd), interest) {
            (Some(Interest::All), _) => {}
            (Some(Interest::Names(known)), Interest::Names(new)) => known.extend(new),
            (_, interest) => {
                self.interests.insert(wd, interest);
            }
        }
    }
}

/// Paths of what is in `dir`; nothing if it cannot be read, which the look that follows will report.
fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    /// Watches `conf` in a fresh directory after `before`; `change` must be noticed.
    async fn notices(before: impl FnOnce(&Path), change: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        before(dir.path());
        let watch = Watch::new(&dir.path().join("conf")).unwrap();
        assert!(!watch.drain().unwrap(), "a change was noticed before there was one");
        change(dir.path());
        let noticed = tokio::time::timeout(Duration::from_secs(60), watch.changed()).await;
        noticed.expect("the change was not noticed").unwrap();
    }

    fn make(dir: &Path) {
        fs::create_dir(dir.join("conf")).unwrap();
    }

    fn make_linked(dir: &Path) {
        fs::create_dir_all(dir.join("v1/inner")).unwrap();
        fs::create_dir_all(dir.join("v2/inner")).unwrap();
        symlink("v1", dir.join("current")).unwrap();
        symlink("current/inner", dir.join("conf")).unwrap();
    }

    #[tokio::test]
    async fn files_that_come_change_and_go_are_noticed() {
        notices(make, |dir| fs::write(dir.join("conf/a"), "x").unwrap()).await;
        let with_file = |dir: &Path| {
            make(dir);
            fs::write(dir.join("conf/a"), "x").unwrap();
        };
        notices(with_file, |dir| fs::write(dir.join("conf/a"), "y").unwrap()).await;
        notices(with_file, |dir| fs::remove_file(dir.join("conf/a")).unwrap()).await;
        notices(with_file, |dir| fs::rename(dir.join("conf/a"), dir.join("conf/b")).unwrap()).await;
    }

    #[tokio::test]
    async fn the_directory_itself_may_come_and_go() {
        notices(|_| {}, make).await;
        notices(make, |dir| fs::remove_dir(dir.join("conf")).unwrap()).await;
        notices(make, |dir| fs::rename(dir.join("conf"), dir.join("old")).unwrap()).await;
    }

    #[tokio::test]
    async fn any_link_on_the_way_may_be_swapped() {
        let swap = |dir: &Path, target: &str, name: &str| {
            symlink(target, dir.join("new")).unwrap();
            fs::rename(dir.join("new"), dir.join(name)).unwrap();
        };
        notices(make_linked, |dir| swap(dir, "v2", "current")).await;
        notices(make_linked, |dir| swap(dir, "v2/inner", "conf")).await;
        notices(make_linked, |dir| fs::write(dir.join("v1/inner/a"), "x").unwrap()).await;
        let dangling = |dir: &Path| symlink("v3/deep", dir.join("conf")).unwrap();
        notices(dangling, |dir| fs::create_dir(dir.join("v3")).unwrap()).await;
    }

    #[tokio::test]
    async fn the_file_behind_a_link_is_watched() {
        let before = |dir: &Path| {
            make(dir);
            fs::create_dir(dir.join("elsewhere")).unwrap();
            fs::write(dir.join("elsewhere/real"), "x").unwrap();
            symlink("../elsewhere/real", dir.join("conf/a")).unwrap();
        };
        notices(before, |dir| fs::write(dir.join("elsewhere/real"), "y").unwrap()).await;
    }

    #[tokio::test]
    async fn other_names_beside_the_way_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        make_linked(dir.path());
        let watch = Watch::new(&dir.path().join("conf")).unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        fs::write(dir.path().join("v1/other"), "x").unwrap();
        fs::write(dir.path().join("v2/inner/a"), "x").unwrap();
        assert!(!watch.drain().unwrap());
    }

    #[tokio::test]
    async fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let watch = Watch::new(&dir.path().join("a/conf")).unwrap();
        fs::remove_file(dir.path().join("b")).unwrap();
        assert!(watch.drain().unwrap());
    }
}
