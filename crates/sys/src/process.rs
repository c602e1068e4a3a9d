//! What a supervisor of processes needs: adopt orphans, wait for children, signal, start clean.

#![allow(unsafe_code, reason = "kill with any signal and close_range have no safe wrapper")]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::{Errno, FdFlags, retry_on_intr};
use rustix::process::{WaitOptions, child_subreaper, getpid, set_child_subreaper, wait};
use rustix::thread::UnshareFlags;

/// Makes this process the parent of every descendant that loses its own, or gives that up again.
///
/// # Errors
/// The kernel's answer.
pub fn set_subreaper(enabled: bool) -> io::Result<()> {
    Ok(set_child_subreaper(enabled.then(getpid))?)
}

/// Whether this process adopts orphaned descendants.
///
/// # Errors
/// The kernel's answer.
pub fn subreaper() -> io::Result<bool> {
    Ok(child_subreaper()?.is_some())
}

/// Takes one child that has ended, adopted ones included; `None` when none has or there is no child at all.
///
/// A [`std::process::Child`] taken here can no longer be waited for by its own methods.
///
/// # Errors
/// The kernel's answer.
pub fn wait_any_nonblocking() -> io::Result<Option<(i32, ExitStatus)>> {
    match retry_on_intr(|| wait(WaitOptions::NOHANG)) {
        Ok(ended) => {
            Ok(ended.map(|(pid, status)| (pid.as_raw_nonzero().get(), ExitStatus::from_raw(status.as_raw()))))
        }
        Err(Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends a signal to one process. The pid must be known to be alive still (a child not yet waited for); in all other cases
/// use [`crate::pidfd::PidFd`].
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` when `pid` is not positive: groups are never meant.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(Errno::INVAL.into());
    }
    answer(
        // SAFETY: the call touches no memory, and a positive pid names one process.
        unsafe { libc::kill(pid, signal) },
    )
}

/// Sends a signal to every process of the group that `leader` leads or led.
///
/// # Errors
/// `ESRCH` when the group is empty, `EINVAL` when `leader` is not greater than 1.
pub fn kill_group(leader: i32, signal: i32) -> io::Result<()> {
    if leader <= 1 {
        return Err(Errno::INVAL.into());
    }
    answer(
        // SAFETY: the call touches no memory, and the number names one group.
        unsafe { libc::kill(-leader, signal) },
    )
}

fn answer(answer: libc::c_int) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a copy of its mount namespace. Propagation is unchanged: the copies of shared mounts are peers
/// of the originals. For a process with one thread, or a thread that ends soon; see also
/// [`crate::mount::on_private_thread`].
///
/// # Errors
/// The kernel's answer.
pub fn unshare_mount_namespace() -> io::Result<()> {
    Ok(crate::thread::unshare(UnshareFlags::NEWNS)?)
}

/// Marks every descriptor above standard error to be closed on exec, whatever the program was started with. To be called
/// first in `main`; descriptors made by this project carry the mark from birth.
///
/// # Errors
/// The kernel's answer.
pub fn close_inherited_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the mark changes no descriptor's meaning for this process.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if answer == 0 { Ok(()) } else { mark_one_by_one() }
}

/// Has the C library keep its heap in `most` parts. It makes up to eight for each processor, since threads then wait for each other
/// less, and each keeps the most that was ever needed of it: a program whose threads come and go grows by that. Other libraries than
/// glibc know no such parts. To be called while there is one thread.
pub fn limit_heaps(most: u8) {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the setting changes how memory is found for later allocations, not what they are.
        let taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::from(most)) };
        debug_assert_eq!(taken, 1, "glibc takes any number of parts");
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// Gives back to the kernel what the C library's heap has free, in whole pages. It keeps the most that was ever needed otherwise.
/// Takes about a millisecond for some ten megabytes.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only what is free is given back; the library locks its parts one after the other.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// For kernels before 5.11.
fn mark_one_by_one() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if number > 2 {
            // SAFETY: the descriptor was open a moment ago; should it be another by now, the mark does not harm it.
            let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
            match rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC) {
                Ok(()) | Err(Errno::BADF) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn pids_that_mean_groups_or_everybody_are_refused() {
        for pid in [0, -1, -7] {
            assert_eq!(kill(pid, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{pid}");
        }
        for leader in [1, 0, -1] {
            assert_eq!(kill_group(leader, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{leader}");
        }
        kill(i32::try_from(std::process::id()).unwrap(), 0).unwrap();
    }

    /// Whether this is a process of its own for a test; if not, the test is run in one.
    fn is_alone(test: &str) -> bool {
        const ALONE: &str = "SYS_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("process::tests::{test}")])
            .env(ALONE, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        false
    }

    /// In a process of its own, since what other tests start would inherit it, too.
    #[test]
    fn inherited_descriptors_end_at_exec() {
        if !is_alone("inherited_descriptors_end_at_exec") {
            return;
        }
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        for mark in [close_inherited_on_exec, mark_one_by_one] {
            rustix::io::fcntl_setfd(&reader, FdFlags::empty()).unwrap();
            mark().unwrap();
            assert!(rustix::io::fcntl_getfd(&reader).unwrap().contains(FdFlags::CLOEXEC));
        }
        let seen = Command::new("ls").arg(format!("/proc/self/fd/{}", reader.as_raw_fd())).output().unwrap();
        assert!(!seen.status.success());
    }

    /// In a process of its own, since waiting for any child would take the children of other tests.
    #[test]
    fn orphans_are_adopted_and_every_child_is_taken_once() {
        if is_alone("orphans_are_adopted_and_every_child_is_taken_once") {
            supervise();
        }
    }

    #[expect(clippy::zombie_processes, reason = "the call under test waits for it")]
    fn supervise() {
        assert!(!subreaper().unwrap());
        assert_eq!(wait_any_nonblocking().unwrap(), None);
        set_subreaper(true).unwrap();
        assert!(subreaper().unwrap());
        let child = Command::new("sh").args(["-c", "(sleep 0.05; exit 7) & exit 3"]).spawn().unwrap();
        let child = i32::try_from(child.id()).unwrap();
        let mut ended = Vec::new();
        while ended.len() < 2 {
            rustix::process::waitid(
                rustix::process::WaitId::All,
                rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
            )
            .unwrap();
            ended.extend(wait_any_nonblocking().unwrap());
        }
        assert_eq!((ended[0].0, ended[0].1.code()), (child, Some(3)));
        assert_eq!(ended[1].1.code(), Some(7));
        assert_eq!(wait_any_nonblocking().unwrap(), None);
        set_subreaper(false).unwrap();
        assert!(!subreaper().unwrap());
    }
}
