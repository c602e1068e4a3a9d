//! The daemon's ends of pipes and terminals, as streams that wait for nobody.
//!
//! The far end of a pipe is another open file than ours, so it stays blocking, as programs expect it. A terminal whose last user has
//! gone answers with an error, which is its end.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::StepError;

/// What a terminal in its usual mode takes for the end of the input: Control-D.
const END_OF_TRANSMISSION: u8 = 4;

/// An end to read from.
#[derive(Debug)]
pub(super) struct ReadEnd(Arc<AsyncFd<OwnedFd>>);

/// A descriptor until it is shut down, for all who know of it.
type Slot = Arc<Mutex<Option<Arc<AsyncFd<OwnedFd>>>>>;

/// An end to write to. Shutting it down closes it.
#[derive(Debug)]
pub(super) struct WriteEnd {
    end: Slot,
    /// What has to be written before it is closed.
    last: Option<u8>,
}

/// Keeps an end open after its user has let go of it, unless that was by shutting it down.
#[derive(Debug)]
pub(super) struct Kept {
    _read: Option<Arc<AsyncFd<OwnedFd>>>,
    _write: Option<Slot>,
}

impl ReadEnd {
    pub(super) fn keep(&self) -> Kept {
        Kept { _read: Some(Arc::clone(&self.0)), _write: None }
    }
}

/// A pipe whose reading end is ours; the other is to be given away.
pub(super) fn to_read() -> Result<(ReadEnd, OwnedFd), StepError> {
    let (near, far) = pipe()?;
    Ok((ReadEnd(watch(near)?), far))
}

/// A pipe whose writing end is ours; the other is to be given away.
pub(super) fn to_write() -> Result<(WriteEnd, OwnedFd), StepError> {
    let (far, near) = pipe()?;
    Ok((WriteEnd::new(near)?, far))
}

/// Both directions of a terminal, of which we have the master. Closing the input types Control-D, as a user would.
pub(super) fn terminal(master: OwnedFd) -> Result<(ReadEnd, WriteEnd), StepError> {
    let master = watch(master)?;
    let input = WriteEnd { end: slot(Arc::clone(&master)), last: Some(END_OF_TRANSMISSION) };
    Ok((ReadEnd(master), input))
}

fn slot(end: Arc<AsyncFd<OwnedFd>>) -> Slot {
    Arc::new(Mutex::new(Some(end)))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), StepError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| StepError::io("making a pipe")(error.into()))
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; what makes it so, a descriptor that changes, an `OwnedFd` cannot do"
)]
fn watch(end: OwnedFd) -> Result<Arc<AsyncFd<OwnedFd>>, StepError> {
    let watched = fcntl_getfl(&end)
        .and_then(|flags| fcntl_setfl(&end, flags | OFlags::NONBLOCK))
        .map_err(io::Error::from)
        .and_then(|()| AsyncFd::new(end));
    watched.map(Arc::new).map_err(StepError::io("watching a stream"))
}

impl AsyncRead for ReadEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match guard.try_io(|end| read(end.get_ref(), room)) {
                Ok(read) => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

fn read(end: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(end, &mut *room) {
            Err(Errno::INTR) => {}
            Err(Errno::IO) => return Ok(0),
            read => return Ok(read?),
        }
    }
}

impl WriteEnd {
    /// Takes an end that somebody else has made.
    pub(super) fn new(end: OwnedFd) -> Result<Self, StepError> {
        Ok(Self { end: slot(watch(end)?), last: None })
    }

    pub(super) fn keep(&self) -> Kept {
        Kept { _read: None, _write: Some(Arc::clone(&self.end)) }
    }

    fn open(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn poll_bytes(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(end) = self.open() else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        loop {
            let mut guard = ready!(end.poll_write_ready(context))?;
            match guard.try_io(|end| write(end.get_ref(), bytes)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }
}

fn write(end: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(end, bytes) {
            Err(Errno::INTR) => {}
            written => return Ok(written?),
        }
    }
}

impl AsyncWrite for WriteEnd {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_bytes(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let (Some(last), Some(_)) = (self.last, self.open()) {
            // Nobody is left to read it when this fails.
            drop(ready!(self.poll_bytes(context, &[last])));
        }
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn shutting_an_end_down_closes_it() {
        let (mut near, far) = to_write().unwrap();
        near.write_all(b"all").await.unwrap();
        near.shutdown().await.unwrap();
        near.shutdown().await.unwrap();
        let mut read = String::new();
        std::fs::File::from(far).read_to_string(&mut read).unwrap();
        assert_eq!(read, "all");
        assert_eq!(near.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// What a read or write at the far end comes to when the near end is closed. What another test is just starting may have that for
    /// another moment.
    fn settled(attempt: impl Fn() -> Result<usize, Errno>) -> Result<usize, Errno> {
        loop {
            match attempt() {
                Err(Errno::AGAIN) | Ok(1) => std::thread::yield_now(),
                done => return done,
            }
        }
    }

    #[tokio::test]
    async fn an_end_that_is_kept_outlives_its_user_but_not_its_shutdown() {
        let (near, far) = to_write().unwrap();
        let kept = near.keep();
        drop(near);
        rustix::fs::fcntl_setfl(&far, OFlags::NONBLOCK).unwrap();
        let mut byte = [0; 1];
        assert_eq!(rustix::io::read(&far, &mut byte), Err(Errno::AGAIN), "it is open");
        drop(kept);
        assert_eq!(settled(|| rustix::io::read(&far, &mut [0; 1])), Ok(0));

        let (mut near, far) = to_write().unwrap();
        let _kept = near.keep();
        near.shutdown().await.unwrap();
        assert_eq!(rustix::io::read(&far, &mut byte), Ok(0));

        let (near, far) = to_read().unwrap();
        let kept = near.keep();
        drop(near);
        assert_eq!(rustix::io::write(&far, b"x"), Ok(1), "somebody could read it");
        drop(kept);
        assert_eq!(settled(|| rustix::io::write(&far, b"x")), Err(Errno::PIPE));
    }

    #[tokio::test]
    async fn the_far_end_still_blocks() {
        for far in [to_read().unwrap().1, to_write().unwrap().1] {
            assert!(!fcntl_getfl(&far).unwrap().contains(OFlags::NONBLOCK));
        }
    }

    #[tokio::test]
    async fn what_a_pipe_has_no_room_for_waits_for_its_reader() {
        let (mut near, far) = to_write().unwrap();
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            std::fs::File::from(far).read_to_end(&mut read).map(|_| read)
        });
        let all: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        near.write_all(&all).await.unwrap();
        drop(near);
        assert!(reader.join().unwrap().unwrap() == all);
    }

    /// A terminal: our side, and a program's.
    fn open_terminal() -> (OwnedFd, std::fs::File) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
        (master, user.into())
    }

    #[tokio::test]
    async fn closing_a_terminals_input_is_its_users_end_of_input() {
        let (master, mut user) = open_terminal();
        let (_output, mut input) = terminal(master).unwrap();
        input.write_all(b"line\n").await.unwrap();
        input.shutdown().await.unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut read = String::new();
            user.read_to_string(&mut read).map(|_| read)
        });
        assert_eq!(read.await.unwrap().unwrap(), "line\n");
    }

    #[tokio::test]
    async fn a_terminal_without_users_has_ended() {
        let (master, mut user) = open_terminal();
        let (mut output, _input) = terminal(master).unwrap();
        user.write_all(b"bye").unwrap();
        drop(user);
        let mut read = String::new();
        output.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "bye");
    }
}
