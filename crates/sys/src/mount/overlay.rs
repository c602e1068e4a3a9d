//! Overlays through the kernel's newer mount calls where they can do it, through mount(2) elsewhere.
//!
//! Neither way ever writes a layer's path into an option list: each layer is opened, and the kernel gets
//! `/proc/self/fd/N` instead. So no character of a path needs an escape and its length does not matter; 200 layers fit
//! into the page that mount(2) takes. Linux 6.8 and later take layers one at a time, which lifts that limit as well.

use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::{Overlay, bind, idmap, remount_readonly, unmount};
use crate::error::MountError;

/// Longest value the kernel takes for one option of fsconfig.
const MAX_OPTION: usize = 255;

/// An overlay that can exist, its layers opened.
#[derive(Debug)]
pub(crate) struct Layers {
    lowers: Vec<Layer>,
    upper: Option<(Layer, Layer)>,
    context: Option<String>,
}

#[derive(Debug)]
struct Layer {
    path: PathBuf,
    fd: OwnedFd,
}

impl Layer {
    fn open(path: &Path) -> Result<Self, MountError> {
        let fd = open_directory(path).map_err(|e| MountError::new("open layer", path, e))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    fn name(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// The path where it can be an option as it stands, which reads better in the mount table.
    fn option(&self) -> String {
        match self.path.to_str() {
            Some(path)
                if path.len() <= MAX_OPTION && path.starts_with('/') && !path.contains(['\\', ':', ',']) =>
            {
                path.to_owned()
            }
            _ => self.name(),
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

impl Layers {
    /// Opens every layer of `overlay`.
    pub(crate) fn of(overlay: &Overlay) -> Result<Self, MountError> {
        if overlay.lowers.is_empty() {
            return Err(MountError::Overlay("it has no lower directory"));
        }
        let written = overlay.upper.as_deref().filter(|_| !overlay.readonly);
        let read = overlay.upper.as_deref().filter(|_| overlay.readonly);
        let lowers = read.into_iter().chain(overlay.lowers.iter().map(PathBuf::as_path));
        let upper = match (written, overlay.work.as_deref()) {
            (Some(upper), Some(work)) => Some((Layer::open(upper)?, Layer::open(work)?)),
            (Some(_), None) => {
                return Err(MountError::Overlay("it has an upper directory but no work directory"));
            }
            (None, _) => None,
        };
        let lowers = lowers.map(Layer::open).collect::<Result<_, _>>()?;
        Ok(Self { lowers, upper, context: overlay.context.clone() })
    }

    /// The only directory there is, when the kernel would refuse to make an overlay of it.
    pub(crate) fn single(&self) -> Option<&Path> {
        match self.lowers.as_slice() {
            [only] if self.upper.is_none() => Some(&only.path),
            _ => None,
        }
    }

    /// How many directories are only read.
    pub(super) fn len(&self) -> usize {
        self.lowers.len()
    }

    /// One of the directories that are only read, mapped and mounted nowhere.
    pub(super) fn mapped(&self, at: usize, userns: BorrowedFd<'_>) -> Result<OwnedFd, MountError> {
        let layer = self.lowers.get(at).ok_or(MountError::Overlay("it has no such layer"))?;
        idmap::detached(&layer.path, userns, idmap::Copy::Layer)
            .map_err(|e| MountError::new("map the ids of layer", &layer.path, e))
    }

    /// Has another mount of it take the place of one of the directories that are only read.
    pub(super) fn replace(&mut self, at: usize, mount: OwnedFd) {
        if let Some(layer) = self.lowers.get_mut(at) {
            // By its descriptor only: the path leads to the first mount.
            *layer = Layer { path: PathBuf::new(), fd: mount };
        }
    }

    /// A detached mount of the overlay; `None` when the kernel is too old to take the layers one at a time. The error
    /// carries what the kernel has to say about it.
    pub(crate) fn detached(&self) -> io::Result<Option<OwnedFd>> {
        let config = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(config) => config,
            Err(Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.configure(&config).map_err(|error| explain(&config, error))
    }

    fn configure(&self, config: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
        for (at, lower) in self.lowers.iter().enumerate() {
            match fsconfig_set_string(config, "lowerdir+", lower.option()) {
                Err(Errno::INVAL) if at == 0 => return Ok(None),
                answer => answer?,
            }
        }
        let attributes = match &self.upper {
            Some((upper, work)) => {
                fsconfig_set_string(config, "upperdir", upper.option())?;
                fsconfig_set_string(config, "workdir", work.option())?;
                MountAttrFlags::empty()
            }
            None => {
                fsconfig_set_flag(config, "ro")?;
                MountAttrFlags::MOUNT_ATTR_RDONLY
            }
        };
        // With an index, as some kernels have by default, layers could not be shared by overlays.
        fsconfig_set_string(config, "index", "off")?;
        if let Some(label) = &self.context {
            fsconfig_set_string(config, "context", label.as_str())?;
        }
        fsconfig_create(config)?;
        fsmount(config, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(Some)
    }

    /// Mounts with one option string; works on every kernel this server supports.
    pub(crate) fn mount_by_options(&self, target: &Path) -> Result<(), Errno> {
        let mut options = String::from("index=off,lowerdir=");
        let lowers: Vec<String> = self.lowers.iter().map(Layer::name).collect();
        options.push_str(&lowers.join(":"));
        let flags = match &self.upper {
            Some((upper, work)) => {
                let written = write!(options, ",upperdir={},workdir={}", upper.name(), work.name());
                debug_assert!(written.is_ok(), "a string takes any text");
                MountFlags::empty()
            }
            None => MountFlags::RDONLY,
        };
        if let Some(label) = &self.context {
            // A label has commas, between categories.
            let written = write!(options, ",context=\"{label}\"");
            debug_assert!(written.is_ok(), "a string takes any text");
        }
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())
    }
}

pub(crate) fn mount_at(layers: &Layers, target: &Path) -> Result<(), MountError> {
    if let Some(only) = layers.single() {
        bind(only, target)?;
        return remount_readonly(target).inspect_err(|_| drop(unmount(target)));
    }
    let failed = |e: io::Error| MountError::new("mount overlay at", target, e);
    let mounted = match make(layers, target)? {
        Some(mount) => move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH),
        None => layers.mount_by_options(target),
    };
    mounted.map_err(|e| failed(e.into()))
}

/// The overlay that is to be mounted at `target`, as [`Layers::detached`] gives it.
pub(super) fn make(layers: &Layers, target: &Path) -> Result<Option<OwnedFd>, MountError> {
    layers.detached().map_err(|e| MountError::new("mount overlay at", target, e))
}

/// The error with the messages that the kernel keeps for whoever configures a filesystem: one for each read, beginning with
/// a letter for its severity.
fn explain(config: &OwnedFd, error: Errno) -> io::Error {
    let mut text = io::Error::from(error).to_string();
    let mut message = [0; 512];
    while let Ok(length @ 1..) = rustix::io::read(config, &mut message) {
        let line = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
        let line = line.trim_end();
        text.push_str("; kernel: ");
        text.push_str(line.get(2..).unwrap_or(line));
    }
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::mount::{list, on_private_thread};

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let place = Self { dir: tempfile::tempdir().unwrap() };
            ["upper", "work", "merged"].iter().for_each(|name| std::fs::create_dir(place.at(name)).unwrap());
            place
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Layers with a file of their own each, and one file that each has: the topmost must win.
        fn lowers(&self, count: usize, name: impl Fn(usize) -> String) -> Vec<PathBuf> {
            let make = |n| {
                let path = self.at(&name(n));
                std::fs::create_dir_all(&path).unwrap();
                std::fs::write(path.join(format!("only-{n}")), "").unwrap();
                std::fs::write(path.join("each"), n.to_string()).unwrap();
                path
            };
            (0..count).map(make).collect()
        }

        fn writable(&self, lowers: Vec<PathBuf>) -> Overlay {
            Overlay {
                lowers,
                upper: Some(self.at("upper")),
                work: Some(self.at("work")),
                ..Overlay::default()
            }
        }
    }

    fn names(path: &Path) -> usize {
        std::fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn changes_go_to_the_upper_directory_and_the_topmost_lower_wins() {
        let place = Place::new();
        let overlay = place.writable(place.lowers(3, |n| format!("layer-{n}")));
        on_private_thread(|| {
            let merged = place.at("merged");
            super::super::overlay(&overlay, &merged).unwrap();
            assert_eq!(std::fs::read(merged.join("each")).unwrap(), b"0");
            std::fs::write(merged.join("new"), "x").unwrap();
            std::fs::remove_file(merged.join("only-2")).unwrap();
        })
        .unwrap();
        assert_eq!((names(&place.at("merged")), names(&place.at("upper"))), (0, 2));
        assert!(place.at("layer-2/only-2").try_exists().unwrap());
    }

    #[test]
    fn more_layers_and_longer_paths_than_a_page_holds() {
        let place = Place::new();
        let overlay = place.writable(place.lowers(120, |n| format!("{}/{n}", "long-name".repeat(20))));
        assert!(overlay.lowers.iter().map(|path| path.as_os_str().len()).sum::<usize>() > 4 * 4096);
        for by_options in [false, true] {
            on_private_thread(|| {
                let layers = Layers::of(&overlay).unwrap();
                match by_options {
                    true => layers.mount_by_options(&place.at("merged")).unwrap(),
                    false => mount_at(&layers, &place.at("merged")).unwrap(),
                }
                assert_eq!(names(&place.at("merged")), 121);
                std::fs::write(place.at("merged/new"), "x").unwrap();
            })
            .unwrap();
            std::fs::remove_file(place.at("upper/new")).unwrap();
        }
    }

    #[test]
    fn no_character_of_a_path_has_a_meaning() {
        let place = Place::new();
        let mut overlay = place.writable(place.lowers(2, |n| format!(r"a:b,c\d=e f\134{n}")));
        overlay.lowers.extend(place.lowers(3, |n| format!("{}/{}/{n}", "x".repeat(200), "y".repeat(200))));
        for (part, name) in [(&mut overlay.upper, r"up:p,e\r"), (&mut overlay.work, r"wo:r,k\")] {
            std::fs::create_dir(place.at(name)).unwrap();
            *part = Some(place.at(name));
        }
        for by_options in [false, true] {
            on_private_thread(|| {
                let layers = Layers::of(&overlay).unwrap();
                match by_options {
                    true => layers.mount_by_options(&place.at("merged")).unwrap(),
                    false => mount_at(&layers, &place.at("merged")).unwrap(),
                }
                assert_eq!(names(&place.at("merged")), 4);
                std::fs::write(place.at("merged/new"), "x").unwrap();
            })
            .unwrap();
            std::fs::remove_file(place.at(r"up:p,e\r/new")).unwrap();
        }
    }

    #[test]
    fn without_an_upper_directory_or_when_asked_nothing_can_be_written() {
        let place = Place::new();
        let lowers = place.lowers(2, |n| format!("layer-{n}"));
        std::fs::write(place.at("upper/changed"), "x").unwrap();
        let asked = Overlay { readonly: true, ..place.writable(lowers.clone()) };
        let lower_only = Overlay { lowers: lowers.clone(), ..Overlay::default() };
        let one = Overlay { lowers: lowers[..1].to_vec(), ..Overlay::default() };
        for (overlay, entries) in [(asked, 4), (lower_only, 3), (one, 2)] {
            on_private_thread(|| {
                let merged = place.at("merged");
                super::super::overlay(&overlay, &merged).unwrap();
                assert_eq!(names(&merged), entries, "{overlay:?}");
                let error = std::fs::write(merged.join("new"), "x").unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            })
            .unwrap();
        }
        std::fs::write(lowers[0].join("still writable"), "x").unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_and_leaves_no_mount() {
        let place = Place::new();
        let lowers = place.lowers(2, |n| format!("layer-{n}"));
        let no_work = Overlay { work: None, ..place.writable(lowers.clone()) };
        let missing = place.writable(vec![lowers[0].clone(), place.at("gone")]);
        on_private_thread(|| {
            // What other tests mount on the host must not be counted.
            crate::mount::make_rprivate(Path::new("/")).unwrap();
            let before = list().unwrap().len();
            let merged = place.at("merged");
            assert!(matches!(
                super::super::overlay(&Overlay::default(), &merged),
                Err(MountError::Overlay(_))
            ));
            assert!(matches!(super::super::overlay(&no_work, &merged), Err(MountError::Overlay(_))));
            let error = super::super::overlay(&missing, &merged).unwrap_err();
            assert!(error.to_string().ends_with("gone"), "{error}");
            assert!(super::super::overlay(&place.writable(lowers.clone()), &place.at("nowhere")).is_err());
            assert_eq!(list().unwrap().len(), before);
        })
        .unwrap();
    }

    #[test]
    fn the_kernels_own_words_are_in_the_error() {
        let config = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let error = fsconfig_set_string(&config, "no-such-option", "x").unwrap_err();
        let error = explain(&config, error);
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("kernel: overlay: Unknown parameter 'no-such-option'"), "{error}");
    }

    #[test]
    fn a_view_is_in_no_mount_table_and_outlives_its_maker() {
        let place = Place::new();
        let lowers = place.lowers(2, |n| format!("layer-{n}"));
        // Other tests mount other things on the host meanwhile.
        let overlays =
            || list().unwrap().into_iter().filter(|mount| mount.fstype == "overlay").collect::<Vec<_>>();
        let before = overlays();
        let several = Overlay { lowers: lowers.clone(), ..Overlay::default() };
        let views = [
            crate::overlay_view::open(&several).unwrap(),
            crate::overlay_view::by_private_namespace(&several).unwrap(),
        ];
        assert_eq!(overlays(), before);
        for view in views {
            let root = crate::beneath::Root::from_fd(view);
            assert_eq!(root.read(Path::new("/each"), 10).unwrap().as_deref(), Some(&b"0"[..]));
            assert!(root.read(Path::new("only-1"), 10).unwrap().is_some());
        }
        let one = crate::overlay_view::open(&Overlay { lowers: lowers[..1].to_vec(), ..Overlay::default() })
            .unwrap();
        let of_one = std::fs::File::from(one).metadata().unwrap().ino();
        assert_eq!(of_one, std::fs::metadata(&lowers[0]).unwrap().ino());
    }

    #[test]
    fn a_label_is_given_to_the_kernel_which_refuses_it_without_selinux() {
        if std::fs::exists("/sys/fs/selinux/enforce").unwrap() {
            return;
        }
        let place = Place::new();
        let context = Some("system_u:object_r:container_file_t:s0:c1,c2".to_owned());
        let labelled = Overlay { context, ..place.writable(place.lowers(2, |n| format!("l{n}"))) };
        on_private_thread(move || {
            let layers = Layers::of(&labelled).unwrap();
            assert!(layers.detached().is_err());
            assert!(layers.mount_by_options(&place.at("merged")).is_err());
        })
        .unwrap();
    }
}
