//! A container's cgroup: who is in it, how to end them all, and whether the kernel's OOM killer struck.
//!
//! The path is read from the init right after create. A directory counts as the container's own only if it holds the
//! init and nothing else at that moment, so that a runtime without cgroups can never make us kill our neighbours.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use types::ExecId;

use crate::exec_group::{self, Group, Place};
use crate::poller::{Poller, Source};

/// Where the host's cgroup hierarchies are mounted.
#[derive(Debug, Default)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    unified: bool,
    /// The mount's options; those of a v1 hierarchy name its controllers.
    options: String,
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    point: PathBuf,
}

/// What is known of a container's cgroup; nothing, for a runtime that makes none.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    own: Option<PathBuf>,
    oom: Option<OomKills>,
    execs: Option<Place>,
}

/// The file that counts OOM kills. systemd removes a scope as soon as its last process has ended, so the count is read
/// whenever the kernel says that it may have changed. The kernel may put such a notice off for 10 ms after the one before, which
/// the cgroup need not outlive; what is left then is that every cgroup above it (v2 only) counts its kills too.
#[derive(Debug)]
struct OomKills {
    path: PathBuf,
    /// The count at the beginning.
    before: u64,
    /// It was higher once.
    struck: bool,
    /// What the kernel's notice comes by, as long as one matters; v1 gives none.
    events: Option<File>,
    /// The same files of the cgroups above, nearest first, with their counts when this one's was last seen unchanged.
    above: Vec<(PathBuf, u64)>,
}

impl Hierarchies {
    pub(crate) fn read() -> Self {
        let mounts = sys::mount::list().unwrap_or_default();
        let cgroups =
            mounts.into_iter().filter(|mount| mount.fstype == "cgroup" || mount.fstype == "cgroup2");
        Self(
            cgroups
                .map(|mount| Hierarchy {
                    unified: mount.fstype == "cgroup2",
                    options: mount.options,
                    root: mount.root,
                    point: mount.mount_point,
                })
                .collect(),
        )
    }

    /// The directory of a path that `/proc/<pid>/cgroup` tells.
    fn directory(&self, controllers: &str, path: &str) -> Option<PathBuf> {
        let first = controllers.split(',').next().unwrap_or_default();
        let hierarchy = self.0.iter().find(|hierarchy| {
            hierarchy.unified == controllers.is_empty()
                && (hierarchy.unified || hierarchy.options.split(',').any(|option| option == first))
        })?;
        let inside = Path::new(path);
        let inside = inside.strip_prefix(&hierarchy.root).or_else(|_| inside.strip_prefix("/")).ok()?;
        Some(hierarchy.point.join(inside))
    }
}

/// The lines of `/proc/<pid>/cgroup` as controllers and path, the likeliest to tell containers apart first.
fn memberships(text: &str) -> Vec<(&str, &str)> {
    const PREFERRED: [&str; 5] = ["", "pids", "memory", "devices", "freezer"];
    let mut lines: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
    lines.sort_by_key(|(controllers, _)| {
        PREFERRED
            .iter()
            .position(|preferred| controllers.split(',').any(|c| c == *preferred))
            .unwrap_or(PREFERRED.len())
    });
    lines
}

impl Cgroup {
    /// The cgroup of a container whose init was just made.
    pub(crate) fn of_init(pid: i32, hierarchies: &Hierarchies) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let dirs: Vec<(&str, PathBuf)> = memberships(&text)
            .into_iter()
            .filter_map(|(controllers, path)| Some((controllers, hierarchies.directory(controllers, path)?)))
            .filter(|(_, dir)| members(dir) == [pid])
            .collect();
        let oom = dirs.iter().find_map(|(_, dir)| OomKills::counted_in(dir));
        let told: Vec<(&str, &Path)> =
            dirs.iter().map(|(controllers, dir)| (*controllers, dir.as_path())).collect();
        let execs = exec_group::place(&told);
        Self { own: dirs.into_iter().next().map(|(_, dir)| dir), oom, execs }
    }

    /// Where the cgroups of its execs are made, if anywhere.
    pub(crate) fn execs(&self) -> Option<&Place> {
        self.execs.as_ref()
    }

    /// A cgroup for one exec.
    pub(crate) fn exec_group(&self, exec: &ExecId) -> Option<Group> {
        Group::make(self.execs.as_ref()?, exec)
    }

    /// Has `poller` tell when to call [`Cgroup::look_for_oom_kill`]. Where that is not to be had, the end has to do.
    pub(crate) fn watch(&self, poller: &Poller, key: u32) {
        if let Some(events) = self.oom.as_ref().and_then(|oom| oom.events.as_ref()) {
            poller.add_urgent(events, Source::OomKills(key)).ok();
        }
    }

    /// Takes note of an OOM kill. Returns whether it is news: call [`Cgroup::neighbour_was_struck`] on the pod's others then.
    pub(crate) fn look_for_oom_kill(&mut self) -> bool {
        self.oom.as_mut().is_some_and(OomKills::look)
    }

    /// Takes a kill that the cgroups above have counted for the neighbour's that it was.
    pub(crate) fn neighbour_was_struck(&mut self) {
        if let Some(oom) = &mut self.oom {
            oom.struck |= oom.counts_more();
            oom.take_stock_above();
        }
    }

    /// Kills everything in it. Returns whether something may be left: call again later.
    pub(crate) fn kill(&self) -> bool {
        /// The number of SIGKILL.
        const KILL: i32 = 9;
        let Some(dir) = &self.own else { return false };
        if all_members(dir).is_empty() {
            return false;
        }
        if fs::write(dir.join("cgroup.kill"), "1").is_err() {
            self.signal(KILL);
        }
        true
    }

    /// Signals every process in it.
    pub(crate) fn signal(&self, signal: i32) {
        for pid in self.own.as_deref().map(all_members).unwrap_or_default() {
            // One that has ended meanwhile needs no signal.
            sys::process::kill(pid, signal).ok();
        }
    }

    /// Whether its processes can be told from others.
    pub(crate) fn is_known(&self) -> bool {
        self.own.is_some()
    }

    /// Whether the OOM killer struck since the beginning.
    pub(crate) fn oom_killed(&self) -> bool {
        self.oom.as_ref().is_some_and(|oom| oom.struck || oom.counts_more())
    }
}

impl OomKills {
    fn counted_in(dir: &Path) -> Option<Self> {
        /// A runtime's cgroup may lie inside the scope that systemd removes; the pod's lies above both.
        const LEVELS: usize = 3;
        let of_v2 = dir.join("memory.events");
        let events = File::open(&of_v2).ok();
        let path = if events.is_some() { of_v2 } else { dir.join("memory.oom_control") };
        let before = count_in(&path)?;
        let higher = dir.ancestors().skip(1).take(LEVELS).map(|dir| dir.join("memory.events"));
        let above = higher.filter(|_| events.is_some()).map_while(|path| Some((count_in(&path)?, path)));
        let above = above.map(|(count, path)| (path, count)).collect();
        Some(Self { path, before, struck: false, events, above })
    }

    /// Reading is also what makes the next notice come. Returns whether a kill was found that was not known.
    fn look(&mut self) -> bool {
        let known = self.struck;
        match self.now() {
            Some(now) => self.struck |= now > self.before,
            // The cgroup is gone.
            None => self.struck |= self.is_counted_above(),
        }
        if self.struck {
            self.events = None;
        } else {
            self.take_stock_above();
        }
        self.struck && !known
    }

    /// The count; nothing once the cgroup is gone, whose file would be reported for ever.
    fn now(&mut self) -> Option<u64> {
        let Some(events) = &self.events else { return count_in(&self.path) };
        let mut buffer = [0; 512];
        let read = events.read_at(&mut buffer, 0).map(|len| buffer.get(..len).unwrap_or_default());
        if read.is_err() {
            self.events = None;
        }
        read.ok().map(|text| count(&String::from_utf8_lossy(text)).unwrap_or(self.before))
    }

    fn counts_more(&self) -> bool {
        count_in(&self.path).is_some_and(|now| now > self.before)
    }

    /// Whether the lowest cgroup above that is still there has counted a kill.
    fn is_counted_above(&self) -> bool {
        let mut readable = self.above.iter().filter_map(|(path, before)| Some(count_in(path)? > *before));
        readable.next().unwrap_or(false)
    }

    fn take_stock_above(&mut self) {
        for (path, before) in &mut self.above {
            *before = count_in(path).unwrap_or(*before);
        }
    }
}

fn count_in(path: &Path) -> Option<u64> {
    count(&fs::read_to_string(path).ok()?)
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn members(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// With those of the cgroups below: of execs, or made by the container for itself.
pub(crate) fn all_members(dir: &Path) -> Vec<i32> {
    let mut pids = members(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(all_members(&entry.path()));
        }
    }
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchies() -> Hierarchies {
        let hierarchy = |unified, options: &str, root: &str, point: &str| Hierarchy {
            unified,
            options: options.to_owned(),
            root: root.into(),
            point: point.into(),
        };
        Hierarchies(vec![
            hierarchy(false, "rw,relatime,cpu,cpuacct", "/", "/c/cpu"),
            hierarchy(false, "rw,relatime,memory", "/docker/x", "/c/memory"),
            hierarchy(true, "rw", "/", "/c/unified"),
        ])
    }

    #[test]
    fn paths_are_found_below_the_mount_of_their_hierarchy() {
        let hierarchies = hierarchies();
        let directory = |controllers: &str, path: &str| hierarchies.directory(controllers, path);
        assert_eq!(directory("cpu,cpuacct", "/a/b"), Some("/c/cpu/a/b".into()));
        assert_eq!(directory("memory", "/docker/x/y"), Some("/c/memory/y".into()));
        assert_eq!(directory("", "/a"), Some("/c/unified/a".into()));
        assert_eq!(directory("pids", "/a"), None);
    }

    #[test]
    fn the_unified_hierarchy_comes_first_and_then_the_telling_ones() {
        let text = "9:name=systemd:/s\n8:pids:/p\n4:memory:/m\n0::/u\n";
        assert_eq!(memberships(text), [("", "/u"), ("pids", "/p"), ("memory", "/m"), ("name=systemd", "/s")]);
    }

    #[test]
    fn a_cgroup_that_others_share_is_nobodys_own() {
        let own = i32::try_from(std::process::id()).unwrap();
        let cgroup = Cgroup::of_init(own, &Hierarchies::read());
        assert!(!cgroup.is_known() || members(cgroup.own.as_ref().unwrap()) == [own]);
        assert!(!Cgroup::default().kill());
        assert!(!Cgroup::default().oom_killed());
    }

    #[test]
    fn oom_kills_are_counted_in_either_form() {
        for (name, calm, struck) in [
            ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n", "oom 4\noom_kill 3\n"),
            ("memory.oom_control", "under_oom 0\noom_kill 0\n", "under_oom 0\noom_kill 1\n"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), calm).unwrap();
            let cgroup = Cgroup { oom: OomKills::counted_in(dir.path()), ..Cgroup::default() };
            assert!(!cgroup.oom_killed(), "{name}");
            std::fs::write(dir.path().join(name), struck).unwrap();
            assert!(cgroup.oom_killed(), "{name}");
        }
    }

    /// A scope in the slice of a pod, and the same cgroup's counts.
    fn scope_in_slice() -> (tempfile::TempDir, PathBuf, Cgroup) {
        let slice = tempfile::tempdir().unwrap();
        let scope = slice.path().join("scope");
        std::fs::create_dir(&scope).unwrap();
        for dir in [slice.path(), &scope] {
            std::fs::write(dir.join("memory.events"), "oom_kill 2\n").unwrap();
        }
        let cgroup = Cgroup { oom: OomKills::counted_in(&scope), ..Cgroup::default() };
        (slice, scope, cgroup)
    }

    #[test]
    fn a_kill_in_a_cgroup_that_is_gone_already_is_known_from_above() {
        let (slice, scope, mut cgroup) = scope_in_slice();
        std::fs::write(slice.path().join("memory.events"), "oom_kill 3\n").unwrap();
        std::fs::remove_dir_all(&scope).unwrap();
        cgroup.oom.as_mut().unwrap().events = None;
        assert!(cgroup.look_for_oom_kill());
        assert!(cgroup.oom_killed());
        assert!(!cgroup.look_for_oom_kill(), "it is no news twice");
    }

    #[test]
    fn a_neighbours_kill_is_nobody_elses() {
        let (slice, scope, mut cgroup) = scope_in_slice();
        std::fs::write(slice.path().join("memory.events"), "oom_kill 3\n").unwrap();
        cgroup.neighbour_was_struck();
        std::fs::remove_dir_all(&scope).unwrap();
        cgroup.oom.as_mut().unwrap().events = None;
        assert!(!cgroup.look_for_oom_kill());
        assert!(!cgroup.oom_killed());
    }

    #[test]
    fn an_oom_kill_outlives_the_cgroup() {
        for name in ["memory.events", "memory.oom_control"] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(name);
            std::fs::write(&file, "oom_kill 2\n").unwrap();
            let mut cgroup = Cgroup { oom: OomKills::counted_in(dir.path()), ..Cgroup::default() };
            cgroup.look_for_oom_kill();
            assert!(!cgroup.oom_killed(), "{name}");
            std::fs::write(&file, "oom_kill 3\n").unwrap();
            cgroup.look_for_oom_kill();
            std::fs::remove_file(&file).unwrap();
            assert!(cgroup.oom_killed(), "{name}");
        }
    }
}
