//! Signals as bytes to read from a descriptor, for a program that waits in one event loop.
//!
//! A handler writes the number of each signal caught into a pipe. Blocking signals and reading them from a signalfd would be
//! shorter, but programs started afterwards would inherit the blocked signals, through an OCI runtime down to the
//! application, which then could not be terminated. Handlers end at exec by themselves. For the same reason a supervisor
//! begins with [`reset`].
//!
//! State: one pipe for the process, made by the first [`Signals::catch`] and never closed, since a handler may run at any
//! time.

#![allow(unsafe_code, reason = "installing a signal handler is unsafe")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// A child has ended or changed its state.
pub const CHILD: i32 = libc::SIGCHLD;
/// A request to end.
pub const TERMINATE: i32 = libc::SIGTERM;
/// A request to end, from a terminal.
pub const INTERRUPT: i32 = libc::SIGINT;
/// A request to read the configuration again.
pub const HANGUP: i32 = libc::SIGHUP;
/// The end, without a word.
pub const KILL: i32 = libc::SIGKILL;

/// The writing end of the pipe, -1 before there is one.
static WRITER: AtomicI32 = AtomicI32::new(-1);

/// The signals caught, in the order of their arrival. The descriptor is readable when there is one.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Catches `signals` from now on, for the whole process and for good.
    ///
    /// # Errors
    /// `AlreadyExists` when signals are caught already; the kernel's answer when one cannot be caught.
    pub fn catch(signals: &[i32]) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let writer = writer.into_raw_fd();
        if WRITER.compare_exchange(-1, writer, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            close(writer);
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        signals.iter().try_for_each(|signal| install(*signal))?;
        Ok(Self(reader))
    }

    /// The next signal caught, `None` when there is none at the moment. Several signals of one number may arrive as one, as
    /// signals do.
    ///
    /// # Errors
    /// The kernel's answer when the pipe cannot be read.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut number = [0_u8];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut number)) {
            Ok(0) | Err(Errno::AGAIN) => Ok(None),
            Ok(_) => Ok(Some(i32::from(number[0]))),
            Err(error) => Err(error.into()),
        }
    }
}

/// Gives every signal its default meaning and lets all of them through, whatever this program was started with: a shell's
/// background job ignores SIGINT and SIGQUIT, `nohup` SIGHUP, and both that and the mask would be inherited by every program
/// started afterwards, applications in containers among them. To be called first, while there is one thread.
///
/// SIGPIPE stays as the standard library has set it; that gives it back to each program that it starts. So do the two numbers
/// that the C library keeps to itself: glibc's `posix_spawn` has every program begin with them ignored, and who uses them sets
/// them first.
///
/// # Errors
/// The kernel's answer.
pub fn reset() -> io::Result<()> {
    // The C library refuses its own two like those that nobody can change.
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| *signal != libc::SIGPIPE) {
        match set(signal, libc::SIG_DFL) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            _ => {}
        }
    }
    unblock_all()
}

fn unblock_all() -> io::Result<()> {
    // SAFETY: sigset_t is a plain C structure for which all zeros is a valid value, and here an empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is only read, and nothing is asked to be written.
    let answer = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(answer)) }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn close(fd: RawFd) {
    // SAFETY: the descriptor was made by the caller and is known to nobody else.
    unsafe { rustix::io::close(fd) };
}

fn install(signal: i32) -> io::Result<()> {
    let handler: extern "C" fn(c_int) = on_signal;
    set(signal, handler as libc::sighandler_t)
}

/// `what` is the default one or a handler that takes a number.
fn set(signal: i32, what: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: sigaction is a plain C structure for which all zeros is a valid value: no flags, nothing else blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = what;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the only handler has the type that an action without SA_SIGINFO needs and calls only what signal-safety(7) allows.
    let answer = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A full pipe loses the signal; 65536 unread ones are enough to wake anybody.
extern "C" fn on_signal(signal: c_int) {
    let number = u8::try_from(signal).unwrap_or(0);
    // SAFETY: errno is a variable of this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the location is valid as long as the thread lives.
    let saved = unsafe { errno.read() };
    // SAFETY: one byte is read from a variable on the stack; the descriptor stays open as long as the process lives.
    unsafe { libc::write(WRITER.load(Ordering::Relaxed), (&raw const number).cast(), 1) };
    // SAFETY: as for reading it.
    unsafe { errno.write(saved) };
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn wait(signals: &Signals) -> bool {
        let limit = Timespec::try_from(Duration::from_secs(60)).unwrap();
        let mut polled = [PollFd::new(signals, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit))).unwrap() == 1
    }

    /// One test, because the pipe is one for the process.
    #[test]
    fn signals_arrive_and_children_do_not_inherit_anything() {
        let signals = Signals::catch(&[libc::SIGUSR1, libc::SIGWINCH]).unwrap();
        assert_eq!(Signals::catch(&[]).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(signals.next().unwrap(), None);
        let own = i32::try_from(std::process::id()).unwrap();
        for signal in [libc::SIGUSR1, libc::SIGWINCH] {
            crate::process::kill(own, signal).unwrap();
            assert!(wait(&signals));
            assert_eq!(signals.next().unwrap(), Some(signal));
        }
        assert!(install(libc::SIGKILL).is_err());
        let status = status_of_child();
        for line in ["SigBlk:\t0000000000000000", "SigCgt:\t0000000000000000"] {
            assert!(status.contains(line), "{line} in\n{status}");
        }
    }

    fn status_of_child() -> String {
        let status = Command::new("cat").arg("/proc/self/status").output().unwrap();
        String::from_utf8(status.stdout).unwrap()
    }

    /// In a process of its own, started as a careless supervisor would.
    #[test]
    fn a_reset_leaves_nothing_of_what_the_starter_ignored_and_blocked() {
        const ROLE: &str = "SYS_TEST_RESET";
        /// With the C library's own two, and without.
        const NOTHING: [&str; 2] = ["SigIgn:\t0000000180000000", "SigIgn:\t0000000000000000"];
        if std::env::var_os(ROLE).is_some() {
            let status = status_of_child();
            assert!(!NOTHING.iter().any(|line| status.contains(line)), "the test proves nothing:\n{status}");
            // The test's own thread, from which children inherit the mask.
            reset().unwrap();
            let status = status_of_child();
            assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
            assert!(NOTHING.iter().any(|line| status.contains(line)), "{status}");
            return;
        }
        let test = "signals::tests::a_reset_leaves_nothing_of_what_the_starter_ignored_and_blocked";
        let signals = "INT,QUIT,HUP,USR1,RTMIN+2";
        let output = Command::new("env")
            .args([format!("--ignore-signal={signals}"), format!("--block-signal={signals},CHLD,PIPE")])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(ROLE, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
