//! Who is in a group, and what its processes hold open. The kernel keeps no such counts: every process is looked at, so this
//! takes as long as there are files open, and callers have to see to it that it is not done too often.

use std::ffi::CStr;
use std::io::ErrorKind;

use rustix::fd::AsFd;
use rustix::fs::{Dir, Mode, OFlags};

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Processes, each with all its threads as one.
    pub processes: u64,
    /// What they hold open; `None` where that must not be seen.
    pub open: Option<Open>,
}

/// Open files of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// File descriptors, sockets among them.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
}

/// Looks at these processes; those that have ended hold nothing.
pub(crate) fn of(pids: &[i32]) -> Census {
    let mut open = Some(Open::default());
    for pid in pids {
        match open_files(*pid) {
            Ok(found) => open = open.map(|sum| sum.and(found)),
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => open = None,
            Err(_) => {}
        }
    }
    Census { processes: u64::try_from(pids.len()).unwrap_or(u64::MAX), open }
}

impl Open {
    fn and(self, other: Self) -> Self {
        Self { descriptors: self.descriptors + other.descriptors, sockets: self.sockets + other.sockets }
    }
}

fn open_files(pid: i32) -> rustix::io::Result<Open> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty())?;
    let mut open = Open::default();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes().first(), None | Some(b'.')) {
            continue;
        }
        open.descriptors += 1;
        open.sockets += u64::from(is_socket(&directory, entry.file_name()));
    }
    Ok(open)
}

/// Told from the link's text: to look at the file itself may take as long as the server that it is on.
fn is_socket(directory: impl AsFd, name: &CStr) -> bool {
    const SOCKET: &[u8] = b"socket:";
    let mut start = [0; SOCKET.len()];
    let filled = rustix::fs::readlinkat_raw(directory, name, &mut start);
    filled.is_ok() && start == *SOCKET
}

/// How many files the process may have open, unless there is no limit to it or the process has ended.
#[must_use]
pub fn open_files_limit(pid: i32) -> Option<u64> {
    let text = match std::fs::read_to_string(format!("/proc/{pid}/limits")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        text => text.ok()?,
    };
    soft_limit(&text, "Max open files")
}

/// A line is a name, the limit that is in force, the one up to which that may be raised, and a unit.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn sockets_are_told_from_other_open_files() {
        // Other tests of this program open and close files meanwhile, so a process of its own is looked at.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(std::process::Stdio::null())
            .stdout(std::os::fd::OwnedFd::from(theirs))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let found = of(&[i32::try_from(child.id()).unwrap()]);
        drop(ours);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.processes, 1);
        assert_eq!(found.open.unwrap().sockets, 1, "{found:?}");
        assert!(found.open.unwrap().descriptors >= 3, "{found:?}");
    }

    #[test]
    fn the_ended_hold_nothing() {
        assert_eq!(of(&[i32::MAX]).open, Some(Open::default()));
        assert_eq!(open_files_limit(i32::MAX), None);
    }

    #[test]
    fn the_limit_in_force_is_told() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max cpu time              unlimited            unlimited            seconds   \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max cpu time"), None);
        assert!(open_files_limit(own()).is_some_and(|limit| limit > 0));
    }
}
