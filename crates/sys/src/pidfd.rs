//! Processes by descriptor: a pid may be given to another process, a pidfd never.

#![allow(
    unsafe_code,
    reason = "rustix has no safe call for signals outside its named set, real-time ones above all"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that was alive when this was opened.
///
/// The descriptor becomes readable when the process has ended, also before its parent has waited for it.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has `pid` now. Compare [`start_time`] before and after when the pid comes from a record.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process, `EINVAL` when `pid` is not positive.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = if pid > 0 { Pid::from_raw(pid) } else { None }.ok_or(Errno::INVAL)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends the signal with this number; 0 only checks.
    ///
    /// # Errors
    /// `ESRCH` when the process has ended and was waited for.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: the descriptor is open, and a null siginfo asks the kernel to fill in its own.
        let answer =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, info, 0) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether the process still runs. A zombie has ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.wait_ended(Some(std::time::Duration::ZERO)).unwrap_or(false)
    }

    /// Waits until the process has ended, at most for `limit`; says whether it has.
    ///
    /// # Errors
    /// The kernel's answer when polling fails.
    pub fn wait_ended(&self, limit: Option<std::time::Duration>) -> io::Result<bool> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut polled, limit.as_ref()))? > 0)
    }

    /// The descriptor, for an event loop.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> Self {
        pidfd.0
    }
}

/// When the process with this pid started, in clock ticks since boot: with the pid it names a process for good.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat line is cut short"))
}

/// The second field is the command in parentheses, which may itself hold blanks and parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    fn pid_of(child: &std::process::Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    #[test]
    fn signals_reach_the_process_and_its_end_is_seen() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pidfd = PidFd::open(pid_of(&child)).unwrap();
        assert!(pidfd.is_alive());
        pidfd.signal(0).unwrap();
        pidfd.signal(libc::SIGRTMIN() + 3).unwrap();
        assert!(pidfd.wait_ended(Some(Duration::from_secs(60))).unwrap());
        assert!(!pidfd.is_alive(), "a zombie is not alive");
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGRTMIN() + 3));
        assert_eq!(pidfd.signal(9).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn pids_that_are_none_are_refused() {
        for pid in [0, -1, i32::MIN] {
            assert_eq!(PidFd::open(pid).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{pid}");
        }
        assert!(PidFd::open(i32::MAX).is_err());
    }

    #[test]
    fn start_time_survives_strange_commands() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let line = format!("7 (a) b) (c) {}", fields.join(" "));
        assert_eq!(parse_start_time(&line), Some(22));
        assert_eq!(parse_start_time("7 (sh) S 1"), None);
        assert!(start_time(1).unwrap() <= start_time(i32::try_from(std::process::id()).unwrap()).unwrap());
        assert_eq!(start_time(i32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
