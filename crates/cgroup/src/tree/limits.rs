//! The files of limits: remembered before a change, put back after one that failed, and written where OCI runtimes do not.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{Tree, groups, has_children, is_gone};
use crate::error::CgroupError;
use crate::property::Limits;

/// The files that hold limits, of both versions of the interface; those of huge pages have the page size in their names.
const FILES: &[&str] = &[
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "cpu.weight",
    "cpu.max",
    "io.weight",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "pids.max",
];
/// How often the processes of a group are looked at for children of those that have been changed.
const PASSES: usize = 10;

/// Files and what they held.
pub(crate) type Contents = Vec<(PathBuf, String)>;

impl Tree {
    /// What the files of limits hold, in the group and all groups in it, and those called `others`.
    pub(crate) fn limits(&self, path: &Path, others: &[String]) -> Result<Contents, CgroupError> {
        let mut contents = Contents::new();
        for top in self.existing(path) {
            for group in groups(&top)? {
                let names = FILES.iter().copied().chain(others.iter().map(String::as_str));
                let names = names.map(str::to_owned).chain(hugepage_files(&group));
                for file in names.map(|name| group.join(name)) {
                    // Files of several lines are changed line by line and cannot be put back as a whole.
                    if let Some(text) = read(&file)?.filter(|text| !text.contains('\n')) {
                        contents.push((file, text));
                    }
                }
            }
        }
        contents.dedup();
        Ok(contents)
    }

    /// Before an OCI runtime changes limits: refuses memory that is in use, and lets the groups in this one have what it is
    /// about to get.
    pub(crate) fn make_room(&self, path: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let wanted = limits.memory.and_then(|bytes| u64::try_from(bytes).ok());
        for top in self.existing(path) {
            if let Some(limit) = wanted {
                refuse_memory_in_use(&top, limit)?;
            }
            widen(&top, "cpuset.cpus", limits.cpus.as_deref());
            widen(&top, "cpuset.mems", limits.mems.as_deref());
        }
        Ok(())
    }

    /// Writes limits of huge pages, which runc leaves out of an update.
    pub(crate) fn set_hugepages(&self, path: &Path, limits: &[(String, u64)]) -> Result<(), CgroupError> {
        for top in self.existing(path) {
            for group in groups(&top)? {
                for (size, limit) in limits {
                    set_hugepage(&group, size, *limit)?;
                }
            }
        }
        Ok(())
    }

    /// Gives the processes of the group that have the score `from` the score `to`; others have set their own.
    pub(crate) fn set_oom_score(&self, path: &Path, from: i32, to: i32) -> Result<(), CgroupError> {
        for _ in 0..PASSES {
            let mut changed = false;
            for pid in self.processes(path)? {
                changed |= change_oom_score(pid, from, to)?;
            }
            if !changed {
                break;
            }
        }
        Ok(())
    }
}

/// Writes the files that hold something else by now, again and again as long as that helps: the kernel takes some values
/// in one order only (memory before memory and swap or after it, a group before the one in it or after it).
pub(crate) fn restore(contents: &Contents) -> Result<(), CgroupError> {
    let mut wrong = changed(contents.iter().collect());
    while !wrong.is_empty() {
        let mut refusal = None;
        for (file, text) in &wrong {
            if let Err(error) = std::fs::write(file, format!("{text}\n")) {
                refusal.get_or_insert(CgroupError::step("write", file, error));
            }
        }
        let left = changed(wrong.clone());
        if left.len() == wrong.len() {
            return refusal.map_or(Ok(()), Err);
        }
        wrong = left;
    }
    Ok(())
}

fn changed(contents: Vec<&(PathBuf, String)>) -> Vec<&(PathBuf, String)> {
    // A file that is gone, or cannot be read any more, has nothing to be put back.
    contents
        .into_iter()
        .filter(|(file, text)| matches!(read(file), Ok(Some(present)) if present != *text))
        .collect()
}

fn read(file: &Path) -> Result<Option<String>, CgroupError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if is_gone(&error) || is_none(&error) => Ok(None),
        Err(error) => Err(CgroupError::step("read", file, error)),
    }
}

/// A file that this kernel shows but does not serve, as swap limits without swap accounting.
fn is_none(error: &std::io::Error) -> bool {
    let codes = [Errno::OPNOTSUPP, Errno::INVAL].map(|errno| errno.raw_os_error());
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn hugepage_files(group: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(group) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| {
            name.starts_with("hugetlb.") && (name.ends_with(".max") || name.ends_with(".limit_in_bytes"))
        })
        .collect()
}

fn set_hugepage(group: &Path, size: &str, limit: u64) -> Result<(), CgroupError> {
    for end in ["max", "rsvd.max", "limit_in_bytes", "rsvd.limit_in_bytes"] {
        let file = group.join(format!("hugetlb.{size}.{end}"));
        match std::fs::OpenOptions::new().write(true).open(&file) {
            Ok(_) => {
                std::fs::write(&file, limit.to_string()).map_err(|e| CgroupError::step("write", &file, e))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(CgroupError::step("open", &file, error)),
        }
    }
    Ok(())
}

/// v1 refuses a limit below what cannot be given back; v2 takes it and kills. So v2 is asked before a limit is lowered.
fn refuse_memory_in_use(group: &Path, limit: u64) -> Result<(), CgroupError> {
    let present = read(&group.join("memory.max"))?.and_then(|text| text.parse::<u64>().ok());
    if present.is_some_and(|present| present <= limit) {
        return Ok(());
    }
    let Some(current) = read(&group.join("memory.current"))?.and_then(|text| text.parse::<u64>().ok()) else {
        return Ok(());
    };
    let stat = read(&group.join("memory.stat"))?.unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    let used = current.saturating_sub(cache.unwrap_or(0));
    if used > limit { Err(CgroupError::MemoryInUse { limit, used }) } else { Ok(()) }
}

/// A v1 cpuset has no more than the one around it, and crun changes the inner one first. What is refused here is refused to
/// the OCI runtime as well, which says why.
fn widen(group: &Path, file: &str, more: Option<&str>) {
    let (Some(more), false) = (more, group.join("cgroup.controllers").is_file()) else { return };
    let file = group.join(file);
    if let (Ok(Some(present)), true) = (read(&file), has_children(group))
        && let Err(error) = std::fs::write(&file, format!("{present},{more}\n"))
    {
        tracing::debug!(file = %file.display(), %error, "a cpuset could not be widened");
    }
}

/// Says whether there was something to change. Processes that end meanwhile are none.
fn change_oom_score(pid: i32, from: i32, to: i32) -> Result<bool, CgroupError> {
    let file = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
    let gone =
        |error: &std::io::Error| is_gone(error) || error.raw_os_error() == Some(Errno::SRCH.raw_os_error());
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim() == from.to_string() && from != to => {}
        Err(error) if !gone(&error) => return Err(CgroupError::step("read", &file, error)),
        Ok(_) | Err(_) => return Ok(false),
    }
    match std::fs::write(&file, to.to_string()) {
        Err(error) if !gone(&error) => Err(CgroupError::step("write", &file, error)),
        Ok(()) | Err(_) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn contents(dir: &Path, files: &[(&str, &str)]) -> Contents {
        files.iter().map(|(name, text)| (dir.join(name), (*text).to_owned())).collect()
    }

    fn fill(dir: &Path, files: &[(&str, &str)]) {
        for (file, text) in contents(dir, files) {
            std::fs::write(file, text).unwrap();
        }
    }

    #[test]
    fn only_what_changed_is_written_back() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &[("cpu.max", "max 100000"), ("cpu.weight", "7\n")]);
        let kept = std::fs::metadata(dir.path().join("cpu.weight")).unwrap().modified().unwrap();
        let before = contents(
            dir.path(),
            &[("cpu.max", "5000 100000"), ("cpu.weight", "7"), ("memory.max", "gone with its group")],
        );
        restore(&before).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("cpu.max")).unwrap(), "5000 100000\n");
        assert_eq!(std::fs::metadata(dir.path().join("cpu.weight")).unwrap().modified().unwrap(), kept);
        assert!(!dir.path().join("memory.max").is_file());
    }

    #[test]
    fn what_cannot_be_put_back_is_named() {
        let dir = tempfile::tempdir().unwrap();
        // Takes everything and keeps nothing, as a file of the kernel may.
        std::os::unix::fs::symlink("/proc/self/comm", dir.path().join("cpu.max")).unwrap();
        let lost = contents(dir.path(), &[("cpu.max", "a text that is longer than the fifteen bytes kept")]);
        restore(&lost).unwrap();
        std::os::unix::fs::symlink("/proc/version", dir.path().join("cpu.weight")).unwrap();
        let error = restore(&contents(dir.path(), &[("cpu.weight", "1")])).unwrap_err();
        assert!(error.to_string().contains("cpu.weight"), "{error}");
    }

    #[test]
    fn memory_in_use_is_refused_but_for_what_can_be_dropped() {
        let dir = tempfile::tempdir().unwrap();
        refuse_memory_in_use(dir.path(), 1).unwrap();
        fill(
            dir.path(),
            &[("memory.current", "100\n"), ("memory.stat", "anon 60\ninactive_file 30\nfile 40\n")],
        );
        refuse_memory_in_use(dir.path(), 70).unwrap();
        let error = refuse_memory_in_use(dir.path(), 69).unwrap_err();
        assert!(matches!(error, CgroupError::MemoryInUse { limit: 69, used: 70 }), "{error}");
        fill(dir.path(), &[("memory.max", "69\n")]);
        refuse_memory_in_use(dir.path(), 69).unwrap();
        fill(dir.path(), &[("memory.max", "max\n")]);
        refuse_memory_in_use(dir.path(), 69).unwrap_err();
    }

    #[test]
    fn a_cpuset_is_widened_where_there_are_groups_in_it() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &[("cpuset.cpus", "1\n")]);
        let now = || std::fs::read_to_string(dir.path().join("cpuset.cpus")).unwrap();
        widen(dir.path(), "cpuset.cpus", Some("0-1"));
        assert_eq!(now(), "1\n", "nothing is in it");
        std::fs::create_dir(dir.path().join("container")).unwrap();
        widen(dir.path(), "cpuset.cpus", None);
        assert_eq!(now(), "1\n");
        widen(dir.path(), "cpuset.cpus", Some("0-1"));
        assert_eq!(now(), "1,0-1\n");
    }

    #[test]
    fn huge_pages_are_set_in_the_files_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &[("hugetlb.2MB.max", "max"), ("hugetlb.2MB.rsvd.max", "max")]);
        set_hugepage(dir.path(), "2MB", 4 << 20).unwrap();
        set_hugepage(dir.path(), "1GB", 0).unwrap();
        let mut found = hugepage_files(dir.path());
        found.sort();
        assert_eq!(found, ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]);
        for file in found {
            assert_eq!(std::fs::read_to_string(dir.path().join(file)).unwrap(), "4194304");
        }
    }

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn the_score_of_a_process_that_chose_its_own_stays() {
        let sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = i32::try_from(sleeper.0.id()).unwrap();
        let file = format!("/proc/{pid}/oom_score_adj");
        let now = || std::fs::read_to_string(&file).unwrap().trim().parse::<i32>().unwrap();
        let own = now();
        assert!(change_oom_score(pid, own, own + 7).unwrap());
        assert_eq!(now(), own + 7);
        assert!(!change_oom_score(pid, own, own + 9).unwrap());
        assert!(!change_oom_score(i32::MAX, own, own + 9).unwrap(), "there is none");
        assert_eq!(now(), own + 7);
    }
}
