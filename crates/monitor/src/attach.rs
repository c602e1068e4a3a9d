//! Clients that look on: copies of a container's output, and its stdin.
//!
//! The daemon sends the writing ends of its pipes and gets the container's stdin itself, so nothing is spoken for it. Output is
//! offered to each client without waiting: what a client's pipe has no room for is kept up to [`QUEUE_LIMIT`], beyond that
//! it is lost for this client, and a line in its stream says how much. The container, its log and other clients never notice.
//!
//! A session ends when its client detaches or closes its pipes, when the connection it was asked on closes, and, once it has been
//! given what was left, with the container. A container whose `stdin_once` is set loses its stdin with the first session that
//! had it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crilog::Stream;
use monitor_api::{AttachRequest, Refusal, RefusalKind, Reply};
use rustix::io::Errno;
use types::ExecId;

use crate::connections::Asker;
use crate::container::Stage;
use crate::lifecycle::io_refusal;
use crate::poller::{Poller, Ready, Source};
use crate::server::{Answer, Monitor};
use crate::stdio::set_nonblocking;

/// Bytes that wait for one stream of one client.
const QUEUE_LIMIT: usize = 1 << 20;
/// How long a client may take to read what is left of a container that has ended.
const FAREWELL: Duration = Duration::from_secs(10);
/// Sessions of one pod at a time: each takes descriptors.
const SESSIONS: usize = 64;

/// One client's view of a container.
#[derive(Debug)]
struct Onlooker {
    session: ExecId,
    /// Names it in the poller.
    key: u32,
    /// The container's key.
    container: u32,
    connection: u32,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// It began with some.
    has_outputs: bool,
    has_stdin: bool,
    /// The container has ended; so does this, at the latest then.
    until: Option<Instant>,
}

/// One stream to a client.
#[derive(Debug)]
struct Output {
    pipe: OwnedFd,
    queue: VecDeque<u8>,
    /// What there was no room for since the queue became full.
    lost: u64,
    /// The poller tells when there is room.
    wants_room: bool,
}

/// All sessions of a pod.
#[derive(Debug, Default)]
pub(crate) struct Onlookers(Vec<Onlooker>);

impl Output {
    fn new(pipe: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&pipe)?;
        Ok(Self { pipe, queue: VecDeque::new(), lost: 0, wants_room: false })
    }

    /// Passes bytes on, keeps them or loses them.
    fn give(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.lost == 0 && self.queue.is_empty() {
            let written = self.write(bytes)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        // What follows a gap comes after the word about it.
        let room = if self.lost > 0 { 0 } else { QUEUE_LIMIT.saturating_sub(self.queue.len()) };
        let (kept, lost) = bytes.split_at(room.min(bytes.len()));
        self.queue.extend(kept);
        self.lost += lost.len() as u64;
        Ok(())
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<usize> {
        let all = bytes.len();
        while !bytes.is_empty() {
            match rustix::io::write(&self.pipe, bytes) {
                Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all - bytes.len())
    }

    /// Writes what waits, and after it what is to be said of the rest.
    fn flush(&mut self) -> io::Result<()> {
        loop {
            let waiting = self.queue.as_slices().0;
            if waiting.is_empty() && self.lost == 0 {
                self.queue = VecDeque::new();
                return Ok(());
            }
            if waiting.is_empty() {
                let notice = format!("\r\n[crimson: {} bytes are missing here]\r\n", self.lost);
                self.queue.extend(notice.bytes());
                self.lost = 0;
                continue;
            }
            let (all, written) = (waiting.len(), self.write(waiting)?);
            self.queue.drain(..written);
            if written < all {
                return Ok(());
            }
        }
    }

    fn is_done(&self) -> bool {
        self.queue.is_empty() && self.lost == 0
    }

    fn watch(&mut self, poller: &Poller, source: Source) -> io::Result<()> {
        let wants_room = !self.is_done();
        if wants_room != self.wants_room {
            poller.want_sink_room(&self.pipe, source, wants_room)?;
            self.wants_room = wants_room;
        }
        Ok(())
    }
}

impl Onlooker {
    fn outputs(&mut self) -> impl Iterator<Item = (Stream, &mut Option<Output>)> {
        [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)].into_iter()
    }

    fn slot(&mut self, stream: Stream) -> &mut Option<Output> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Does something with a stream, if it is there; a failure ends it.
    fn with(&mut self, stream: Stream, action: impl FnOnce(&mut Output) -> io::Result<()>) {
        let slot = self.slot(stream);
        if slot.as_mut().is_some_and(|output| action(output).is_err()) {
            *slot = None;
        }
    }

    fn watch(&mut self, poller: &Poller) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let source = Source::Onlooker(self.key, stream);
            self.with(stream, |output| output.watch(poller, source));
        }
        if self.until.is_some() {
            for (_, slot) in self.outputs() {
                slot.take_if(|output| output.is_done());
            }
        }
    }

    /// Whether nobody reads any of it any more, or there is nothing more to read.
    fn is_over(&self) -> bool {
        let looked_on = self.has_outputs || self.until.is_some();
        looked_on && self.stdout.is_none() && self.stderr.is_none()
    }
}

impl Onlookers {
    /// Passes a container's output on; [`Onlookers::settle`] has to follow.
    pub(crate) fn give(&mut self, container: u32, stream: Stream, bytes: &[u8]) {
        for onlooker in self.0.iter_mut().filter(|onlooker| onlooker.container == container) {
            onlooker.with(stream, |output| output.give(bytes));
        }
    }

    /// Brings the poller up to date.
    pub(crate) fn settle(&mut self, poller: &Poller) {
        self.0.iter_mut().for_each(|onlooker| onlooker.watch(poller));
    }

    /// The container has ended: its clients get what is left and then the end.
    pub(crate) fn container_ended(&mut self, container: u32, poller: &Poller) {
        let until = Instant::now() + FAREWELL;
        for onlooker in self.0.iter_mut().filter(|onlooker| onlooker.container == container) {
            onlooker.until.get_or_insert(until);
        }
        self.settle(poller);
    }

    /// When [`Onlookers::part`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.iter().filter_map(|onlooker| onlooker.until).min()
    }

    /// Leaves those who take too long for what is left.
    pub(crate) fn part(&mut self, now: Instant) {
        self.0.retain(|onlooker| onlooker.until.is_none_or(|until| now < until));
    }

    fn take(&mut self, which: impl Fn(&Onlooker) -> bool) -> Vec<Onlooker> {
        if self.0.is_empty() {
            return Vec::new();
        }
        self.0.extract_if(.., |onlooker| which(onlooker)).collect()
    }
}

impl Monitor {
    pub(crate) fn attach(&mut self, asker: Asker, request: &AttachRequest, fds: Vec<OwnedFd>) -> Answer {
        let known = self.onlookers.0.iter().any(|onlooker| onlooker.session == request.session);
        if known || self.onlookers.0.len() >= SESSIONS {
            let message = if known { "the session exists" } else { "there are too many sessions" };
            return Err(Refusal::new(RefusalKind::InvalidState, message));
        }
        let (stdout, stderr) = outputs_of(request, fds)?;
        let container = self.known(&request.container)?;
        if !matches!(container.stage, Stage::Created | Stage::Running) {
            let message = format!("container {} is not running", container.id);
            return Err(Refusal::new(RefusalKind::InvalidState, message));
        }
        let stdin = request.stdin.then(|| container.streams.stdin_copy()).transpose();
        let stdin = stdin.map_err(|error| io_refusal("share the container's stdin", &error))?.flatten();
        let container = container.key;
        self.next_key = self.next_key.wrapping_add(1);
        let onlooker = Onlooker {
            session: request.session.clone(),
            key: self.next_key,
            container,
            connection: asker.connection,
            stdout,
            stderr,
            has_outputs: request.stdout || request.stderr,
            has_stdin: stdin.is_some(),
            until: None,
        };
        watch(&self.poller, &onlooker).map_err(|error| io_refusal("watch the client's pipes", &error))?;
        self.onlookers.0.push(onlooker);
        self.reply(asker, &Reply::Attached { stdin: stdin.is_some() }, stdin);
        Ok(None)
    }

    /// A client's pipe has room again, or nobody reads it any more.
    pub(crate) fn onlooker_ready(&mut self, key: u32, stream: Stream, ready: Ready) {
        let Some(onlooker) = self.onlookers.0.iter_mut().find(|onlooker| onlooker.key == key) else { return };
        if ready.readable {
            *onlooker.slot(stream) = None;
        } else {
            onlooker.with(stream, Output::flush);
        }
        onlooker.watch(&self.poller);
    }

    /// Ends the sessions whose client has left, or that have seen their container's end.
    pub(crate) fn end_sessions_over(&mut self) {
        self.end_sessions(Onlooker::is_over);
    }

    pub(crate) fn detach(&mut self, session: &ExecId) -> Answer {
        self.end_sessions(|onlooker| onlooker.session == *session);
        Ok(Some(Reply::Done))
    }

    /// The client's input has ended, though it may go on to look.
    pub(crate) fn close_stdin(&mut self, session: &ExecId) -> Answer {
        let mut sessions = self.onlookers.0.iter_mut();
        let Some(onlooker) = sessions.find(|onlooker| onlooker.session == *session) else {
            return Err(Refusal::new(RefusalKind::NotFound, format!("session {session} is not known")));
        };
        let had = std::mem::take(&mut onlooker.has_stdin);
        let container = onlooker.container;
        self.stdin_left(container, had);
        Ok(Some(Reply::Done))
    }

    pub(crate) fn end_sessions_of_connection(&mut self, connection: u32) {
        self.end_sessions(|onlooker| onlooker.connection == connection);
    }

    fn end_sessions(&mut self, which: impl Fn(&Onlooker) -> bool) {
        for onlooker in self.onlookers.take(which) {
            self.stdin_left(onlooker.container, onlooker.has_stdin);
        }
    }

    /// One who had a container's stdin has left it.
    fn stdin_left(&mut self, container: u32, had_it: bool) {
        let container = self.containers.values_mut().find(|it| it.key == container);
        container.into_iter().filter(|it| had_it && it.stdin_once).for_each(|it| it.streams.close_stdin());
    }
}

fn watch(poller: &Poller, onlooker: &Onlooker) -> io::Result<()> {
    for (stream, output) in [(Stream::Stdout, &onlooker.stdout), (Stream::Stderr, &onlooker.stderr)] {
        if let Some(output) = output {
            poller.add_sink(&output.pipe, Source::Onlooker(onlooker.key, stream))?;
        }
    }
    Ok(())
}

/// The pipes that came with the request, by their names.
fn outputs_of(
    request: &AttachRequest,
    fds: Vec<OwnedFd>,
) -> Result<(Option<Output>, Option<Output>), Refusal> {
    if usize::from(request.stdout) + usize::from(request.stderr) != fds.len() {
        return Err(Refusal::new(RefusalKind::Io, "the descriptors of the client's pipes did not arrive"));
    }
    let mut outputs = fds.into_iter().map(Output::new);
    let mut next = |named: bool| if named { outputs.next().transpose() } else { Ok(None) };
    let made = next(request.stdout).and_then(|stdout| Ok((stdout, next(request.stderr)?)));
    made.map_err(|error| io_refusal("take the client's pipes", &error))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn output() -> (std::fs::File, Output) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        set_nonblocking(&reader).unwrap();
        (reader.into(), Output::new(writer).unwrap())
    }

    fn read(file: &mut std::fs::File) -> Vec<u8> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(len @ 1..) = file.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..len]);
        }
        bytes
    }

    #[test]
    fn what_the_pipe_has_no_room_for_comes_later_in_order() {
        let (mut client, mut output) = output();
        let given: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        given.chunks(7000).for_each(|chunk| output.give(chunk).unwrap());
        let mut got = Vec::new();
        while !output.is_done() {
            got.extend(read(&mut client));
            output.flush().unwrap();
        }
        got.extend(read(&mut client));
        assert!(got == given);
        assert_eq!(output.queue.capacity(), 0, "no memory is held for a client that keeps up");
    }

    #[test]
    fn a_client_that_does_not_read_loses_and_is_told_how_much() {
        let (mut client, mut output) = output();
        for _ in 0..200 {
            output.give(&[b'x'; 16 * 1024]).unwrap();
            assert!(output.queue.len() <= QUEUE_LIMIT);
        }
        let lost = output.lost;
        assert!(lost > 0);
        let mut got = Vec::new();
        while !output.is_done() {
            got.extend(read(&mut client));
            output.flush().unwrap();
        }
        output.give(b"after").unwrap();
        got.extend(read(&mut client));
        let text = String::from_utf8(got).unwrap();
        let notice = format!("\r\n[crimson: {lost} bytes are missing here]\r\nafter");
        assert!(text.ends_with(&notice));
        let kept = text.len() - notice.len();
        assert_eq!(kept as u64 + lost, 200 * 16 * 1024);
    }

    #[test]
    fn a_client_that_has_left_is_noticed() {
        let (client, mut output) = output();
        drop(client);
        // What another test is just starting may have it for another moment.
        while output.give(b"x").and_then(|()| output.flush()).is_ok() {
            std::thread::yield_now();
        }
    }
}
