//! The standard streams of a container: pipes or a terminal, and the log they end in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crilog::{DEFAULT_LIMIT, LogBehind, LogWriter, Stream};
use monitor_api::Refusal;
use rustix::fs::{FileType, Gid, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use types::Timestamp;

use crate::lifecycle::io_refusal;
use crate::poller::{Poller, Source};

/// What the runtime's `create` gets as its own streams, and hands on to the container. `None` is `/dev/null`.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl ChildStdio {
    /// Has them belong to the user and group that the process has outside its user namespace: it may open `/dev/stdout` by name
    /// then, which is a matter of its pipe's owner. The OCI runtime does the same where it can, which is without such a namespace.
    pub(crate) fn give_to(&self, (uid, gid): (u32, u32)) -> Result<(), Refusal> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let give = |stream: &OwnedFd| match FileType::from_raw_mode(fstat(stream)?.st_mode) {
            FileType::Fifo => fchown(stream, Some(uid), Some(gid)),
            // Anything else is not the process's alone.
            _ => Ok(()),
        };
        let mut streams = [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten();
        let given = streams.try_for_each(give);
        given.map_err(|error| io_refusal("give the streams to their process", &error.into()))
    }
}

/// How much is read at a time.
const READ_LEN: usize = 16 * 1024;

/// Our ends, and where the output goes.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Kept open for attach.
    stdin: Option<OwnedFd>,
    /// The terminal's master is our stdout.
    terminal: bool,
    log: Option<Log>,
    /// What the log had dropped when it was closed.
    dropped: u64,
}

/// The log of a container.
#[derive(Debug)]
pub(crate) enum Log {
    /// Written at once: on disks of this machine the room may end, but not the answer.
    Direct(LogWriter),
    /// By a thread, whose file system may hang. The other containers' streams, all ends and all requests are ours to see.
    Behind(LogBehind),
}

impl Log {
    /// Opens a log.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let writer = LogWriter::open(path, DEFAULT_LIMIT)?;
        if writer.may_stall() { LogBehind::start(writer).map(Self::Behind) } else { Ok(Self::Direct(writer)) }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        match self {
            Self::Direct(log) => log.write(stream, bytes, Timestamp::now()),
            Self::Behind(log) => log.write(stream, bytes, Timestamp::now()),
        }
    }

    fn end(&mut self, stream: Stream) {
        match self {
            Self::Direct(log) => log.end(stream, Timestamp::now()),
            Self::Behind(log) => log.end(stream, Timestamp::now()),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::Direct(log) => log.reopen(),
            Self::Behind(log) => log.reopen(),
        }
    }

    fn is_settled(&self) -> bool {
        match self {
            Self::Direct(_) => true,
            Self::Behind(log) => log.is_settled(),
        }
    }

    fn dropped_lines(&self) -> u64 {
        match self {
            Self::Direct(log) => log.dropped_lines(),
            Self::Behind(log) => log.dropped_lines(),
        }
    }

    fn close(self) -> u64 {
        match self {
            Self::Direct(log) => log.close(Timestamp::now()),
            Self::Behind(log) => log.close(Timestamp::now()),
        }
    }
}

/// Whether there may be more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// All that was there is written.
    Drained,
    /// There is more.
    More,
    /// The stream has ended.
    Ended,
}

impl Streams {
    /// Streams without a terminal: two pipes, and a third one for stdin if asked for.
    pub(crate) fn pipes(stdin: bool, log: Option<Log>) -> io::Result<(Self, ChildStdio)> {
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        set_nonblocking(&stdout)?;
        set_nonblocking(&stderr)?;
        let (child_stdin, stdin) = if stdin { split(pipe_with(PipeFlags::CLOEXEC)?)? } else { (None, None) };
        let child = ChildStdio { stdin: child_stdin, stdout: Some(child_stdout), stderr: Some(child_stderr) };
        Ok((
            Self { stdout: Some(stdout), stderr: Some(stderr), stdin, terminal: false, log, dropped: 0 },
            child,
        ))
    }

    /// Streams of a terminal, whose master comes later.
    pub(crate) fn terminal(log: Option<Log>) -> Self {
        Self { terminal: true, log, ..Self::default() }
    }

    /// The terminal's master has come.
    pub(crate) fn set_master(&mut self, master: OwnedFd) -> io::Result<()> {
        set_nonblocking(&master)?;
        self.stdout = Some(master);
        Ok(())
    }

    /// The terminal's master, while it is open.
    pub(crate) fn master(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.as_ref().filter(|_| self.terminal).map(AsFd::as_fd)
    }

    /// Another descriptor of its stdin, if it has one: the pipe, or its terminal. Writing to it does not wait.
    pub(crate) fn stdin_copy(&self) -> io::Result<Option<OwnedFd>> {
        let stdin = if self.terminal { &self.stdout } else { &self.stdin };
        stdin.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Ends its stdin, once those who have copies let go of them. A terminal's is its output too, and stays.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Begins to read.
    pub(crate) fn watch(&self, poller: &Poller, key: u32) -> io::Result<()> {
        for (stream, fd) in [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)] {
            if let Some(fd) = fd {
                poller.add(fd, Source::Output(key, stream))?;
            }
        }
        Ok(())
    }

    /// Whether both streams have ended.
    pub(crate) fn ended(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Whether the log has yet to be given what was read.
    pub(crate) fn is_behind(&self) -> bool {
        self.log.as_ref().is_some_and(|log| !log.is_settled())
    }

    /// Reads what is there, at most `rounds` buffers of it, into the log, and shows it to who looks on.
    pub(crate) fn pump(
        &mut self,
        stream: Stream,
        buffer: &mut [u8],
        rounds: u32,
        look_on: &mut dyn FnMut(Stream, &[u8]),
    ) -> Pumped {
        let buffer = buffer.get_mut(..READ_LEN).unwrap_or_default();
        for _ in 0..rounds {
            let Some(fd) = self.slot(stream) else { return Pumped::Ended };
            match rustix::io::read(&*fd, &mut *buffer) {
                // A terminal whose last user has gone answers with an error instead of an end.
                Ok(0) | Err(Errno::IO) => {
                    self.end(stream);
                    return Pumped::Ended;
                }
                Ok(len) => {
                    let bytes = buffer.get(..len).unwrap_or_default();
                    self.write(stream, bytes);
                    look_on(stream, bytes);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Pumped::Drained,
                Err(_) => {
                    self.end(stream);
                    return Pumped::Ended;
                }
            }
        }
        Pumped::More
    }

    /// Reads what is left, gives the streams up, also those that somebody still holds open, and closes the log: an open file
    /// that kubelet has removed would keep its room on the disk.
    pub(crate) fn finish(&mut self, buffer: &mut [u8], look_on: &mut dyn FnMut(Stream, &[u8])) {
        /// More than a pipe can hold, for readers' buffers of any size that we use.
        const ROUNDS: u32 = 64;
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.pump(stream, buffer, ROUNDS, look_on);
            self.end(stream);
        }
        self.stdin = None;
        if let Some(log) = self.log.take() {
            self.dropped = log.close();
        }
    }

    /// What was printed so far, without the log: for the words of a runtime that failed.
    pub(crate) fn read_stderr(&mut self, buffer: &mut [u8]) -> usize {
        self.stderr.as_ref().and_then(|fd| rustix::io::read(fd, buffer).ok()).unwrap_or(0)
    }

    pub(crate) fn reopen_log(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    pub(crate) fn dropped_lines(&self) -> u64 {
        self.log.as_ref().map_or(self.dropped, Log::dropped_lines)
    }

    fn slot(&mut self, stream: Stream) -> Option<&mut OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_mut(),
            Stream::Stderr => self.stderr.as_mut(),
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.write(stream, bytes);
        }
    }

    fn end(&mut self, stream: Stream) {
        let fd = match stream {
            Stream::Stdout => self.stdout.take(),
            Stream::Stderr => self.stderr.take(),
        };
        if let (Some(_), Some(log)) = (fd, &mut self.log) {
            log.end(stream);
        }
    }
}

/// Only our end: the container's is another open file, which stays as programs expect it.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

type Ends = (Option<OwnedFd>, Option<OwnedFd>);

fn split((reader, writer): (OwnedFd, OwnedFd)) -> io::Result<Ends> {
    set_nonblocking(&writer)?;
    Ok((Some(reader), Some(writer)))
}
