//! A log that a thread of its own writes, for files whose writes may not return: on a file system that is served by another
//! machine or program and hangs.
//!
//! Whoever hands output over never waits. What cannot be written yet is kept, up to a bound; beyond that whole lines are dropped
//! and counted, as on a full disk, and the log says so when it goes on. A thread that hangs is left to itself at the end: it
//! writes what it has when the file system comes back, and ends.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use types::Timestamp;

use crate::{LogWriter, Stream};

/// The most bytes of output that wait to be written.
const QUEUE_BYTES: usize = 256 * 1024;
/// What each chunk that waits takes besides its bytes, so that tiny ones count, too.
const CHUNK_COST: usize = 128;
/// How long a reopening is waited for; it is done later all the same.
const REOPEN_WAIT: Duration = Duration::from_secs(1);
/// The thread needs little; the writer's list of slices is the most of it.
const STACK: usize = 64 * 1024;

/// The near end of such a log.
#[derive(Debug)]
pub struct LogBehind {
    shared: Arc<Shared>,
    stdout: Losing,
    stderr: Losing,
}

/// What is being dropped of a stream.
#[derive(Debug, Default)]
struct Losing {
    /// Until the end of the line that was hit.
    is_on: bool,
    /// Lines that the writer does not know to be missing.
    lines: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do, or the end has come.
    order: Condvar,
    /// Something has been done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    orders: VecDeque<Order>,
    /// What output among the orders takes.
    bytes: usize,
    is_working: bool,
    /// When the end came.
    closed: Option<Timestamp>,
    reopened: Option<io::Result<()>>,
    /// Lines that were dropped here, and by the writer.
    lost: u64,
    dropped: u64,
}

#[derive(Debug)]
enum Order {
    Output(Stream, Vec<u8>, Timestamp),
    Missing(Stream, u64),
    End(Stream, Timestamp),
    Reopen,
}

impl LogBehind {
    /// Begins the thread.
    ///
    /// # Errors
    /// The system's, when there can be no thread.
    pub fn start(writer: LogWriter) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { state: Mutex::default(), order: Condvar::new(), done: Condvar::new() });
        let far = Arc::clone(&shared);
        Builder::new().name("log".to_owned()).stack_size(STACK).spawn(move || far.serve(writer))?;
        Ok(Self { shared, stdout: Losing::default(), stderr: Losing::default() })
    }

    /// Takes a chunk that was read from `stream` at `now`.
    pub fn write(&mut self, stream: Stream, chunk: &[u8], now: Timestamp) {
        let mut state = self.shared.lock();
        let losing = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let chunk = losing.take(chunk, QUEUE_BYTES.saturating_sub(state.bytes + CHUNK_COST), &mut state.lost);
        if chunk.is_empty() {
            return;
        }
        if losing.lines > 0 {
            state.orders.push_back(Order::Missing(stream, std::mem::take(&mut losing.lines)));
        }
        state.bytes += chunk.len() + CHUNK_COST;
        state.orders.push_back(Order::Output(stream, chunk.to_vec(), now));
        self.shared.order.notify_one();
    }

    /// Ends a stream at `now`.
    pub fn end(&mut self, stream: Stream, now: Timestamp) {
        let mut state = self.shared.lock();
        let losing = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        losing.end(&mut state.lost);
        if losing.lines > 0 {
            state.orders.push_back(Order::Missing(stream, std::mem::take(&mut losing.lines)));
        }
        state.orders.push_back(Order::End(stream, now));
        self.shared.order.notify_one();
    }

    /// Goes on in a new file at the same path.
    ///
    /// # Errors
    /// The system's, when the file cannot be opened; `TimedOut` when that is not known soon.
    pub fn reopen(&mut self) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.reopened = None;
        if !matches!(state.orders.back(), Some(Order::Reopen)) {
            state.orders.push_back(Order::Reopen);
        }
        self.shared.order.notify_one();
        let until = Instant::now() + REOPEN_WAIT;
        loop {
            if let Some(outcome) = state.reopened.take() {
                return outcome;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer"));
            }
            state = self.shared.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether all that was handed over is written.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let state = self.shared.lock();
        state.orders.is_empty() && !state.is_working
    }

    /// How many lines were dropped so far.
    #[must_use]
    pub fn dropped_lines(&self) -> u64 {
        let state = self.shared.lock();
        state.lost + state.dropped
    }

    /// Nothing more will be written; how many lines were dropped. What is not written yet will be when the file system answers.
    pub fn close(self, now: Timestamp) -> u64 {
        self.shared.lock().closed = Some(now);
        self.shared.order.notify_one();
        self.dropped_lines()
    }
}

impl Drop for LogBehind {
    fn drop(&mut self) {
        self.shared.lock().closed.get_or_insert(Timestamp::UNSET);
        self.shared.order.notify_one();
    }
}

impl Losing {
    /// What there is room for of a chunk. The rest, to the end of its last line, is dropped, and counted in `lost`, too.
    fn take<'chunk>(&mut self, chunk: &'chunk [u8], room: usize, lost: &mut u64) -> &'chunk [u8] {
        if chunk.len() > room {
            self.is_on = true;
            self.lose(chunk, lost);
            self.is_on = chunk.last() != Some(&b'\n');
            return &[];
        }
        if !self.is_on {
            return chunk;
        }
        let Some(newline) = chunk.iter().position(|byte| *byte == b'\n') else { return &[] };
        let (dropped, kept) = chunk.split_at(newline + 1);
        self.lose(dropped, lost);
        self.is_on = false;
        kept
    }

    fn lose(&mut self, bytes: &[u8], lost: &mut u64) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.lines += lines;
        *lost += lines;
    }

    /// The stream ends in the midst of a line that was hit.
    fn end(&mut self, lost: &mut u64) {
        if std::mem::take(&mut self.is_on) {
            self.lines += 1;
            *lost += 1;
        }
    }
}

impl Shared {
    /// A thread that panicked with the lock held has left nothing half done that matters here.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn serve(&self, mut writer: LogWriter) {
        // What the writer was told to be missing is counted here already.
        let mut told = 0;
        while let Some(order) = self.next() {
            let mut reopened = None;
            match order {
                Order::Output(stream, chunk, now) => writer.write(stream, &chunk, now),
                Order::Missing(stream, lines) => {
                    told += lines;
                    writer.lose(stream, lines);
                }
                Order::End(stream, now) => writer.end(stream, now),
                Order::Reopen => reopened = Some(writer.reopen()),
            }
            let mut state = self.lock();
            state.is_working = false;
            state.dropped = writer.dropped_lines() - told;
            state.reopened = reopened.or(state.reopened.take());
            self.done.notify_all();
        }
        let now = self.lock().closed.unwrap_or_default();
        writer.close(now);
    }

    /// The next order; `None` at the end.
    fn next(&self) -> Option<Order> {
        let mut state = self.lock();
        loop {
            if let Some(order) = state.orders.pop_front() {
                if let Order::Output(_, chunk, _) = &order {
                    state.bytes -= chunk.len() + CHUNK_COST;
                }
                state.is_working = true;
                return Some(order);
            }
            if state.closed.is_some() {
                return None;
            }
            state = self.order.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::{DEFAULT_LIMIT, read_output};

    const NOW: Timestamp = Timestamp(1_500_000_000);

    /// A log that hangs as long as nobody reads it: the kernel's pipe takes 64 KiB.
    struct Hanging {
        _dir: tempfile::TempDir,
        path: PathBuf,
        reader: File,
    }

    impl Hanging {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
            let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
            let mut options = OpenOptions::new();
            let reader = options.read(true).write(true).custom_flags(nonblocking).open(&path).unwrap();
            Self { _dir: dir, path, reader }
        }

        fn open(&self) -> LogBehind {
            let writer = LogWriter::open(&self.path, DEFAULT_LIMIT).unwrap();
            assert!(writer.may_stall());
            LogBehind::start(writer).unwrap()
        }

        /// Reads what is there, again and again, until `is_enough` of all that was read.
        fn read_until(&mut self, all: &mut Vec<u8>, is_enough: impl Fn(&[u8]) -> bool) {
            let mut buffer = [0; 65536];
            while !is_enough(all) {
                match self.reader.read(&mut buffer) {
                    Ok(len) => all.extend_from_slice(&buffer[..len]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn numbers(text: &str) -> Vec<u32> {
        text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
    }

    #[test]
    fn a_hang_keeps_nobody_waiting_and_what_is_lost_is_counted_and_told() {
        let mut hanging = Hanging::new();
        let mut log = hanging.open();
        // Each line comes in two pieces.
        for n in 0..20_000 {
            log.write(Stream::Stdout, format!("{n} and").as_bytes(), NOW);
            log.write(Stream::Stdout, b" more\n", NOW);
        }
        let dropped = log.dropped_lines();
        assert!(dropped > 1_000 && !log.is_settled(), "{dropped}");
        // The file system is back.
        let mut all = Vec::new();
        hanging.read_until(&mut all, |_| log.is_settled());
        log.write(Stream::Stdout, b"last\nopen", NOW);
        log.end(Stream::Stdout, NOW);
        hanging.read_until(&mut all, |all| all.ends_with(b" P open\n"));
        assert_eq!(log.close(NOW), dropped);
        let text = String::from_utf8(read_output(&all, Stream::Stdout).unwrap()).unwrap();
        let seen = numbers(&text);
        assert!(seen.is_sorted() && seen.len() as u64 + dropped == 20_000, "{} and {dropped}", seen.len());
        assert!(text.lines().all(|line| line.ends_with(" and more") || line == "last" || line == "open"));
        let notice = String::from_utf8(read_output(&all, Stream::Stderr).unwrap()).unwrap();
        // More than one where the pipe took some lines between two that were dropped.
        let told = |line: &str| line.strip_prefix("crimson: ")?.split(' ').next()?.parse::<u64>().ok();
        assert_eq!(notice.lines().map(|line| told(line).unwrap()).sum::<u64>(), dropped, "{notice}");
    }

    #[test]
    fn nothing_is_lost_where_nothing_hangs_and_a_reopened_file_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let writer = LogWriter::open(&path, DEFAULT_LIMIT).unwrap();
        assert!(!writer.may_stall(), "the tests run on a local file system");
        let mut log = LogBehind::start(writer).unwrap();
        log.write(Stream::Stdout, b"one\ntw", NOW);
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        // It waits a second for the thread, which is little on a busy machine.
        while let Err(error) = log.reopen() {
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        log.write(Stream::Stdout, b"o\n", NOW);
        while !log.is_settled() {
            std::thread::yield_now();
        }
        assert_eq!(log.close(NOW), 0);
        let of =
            |name: &str| read_output(&std::fs::read(dir.path().join(name)).unwrap(), Stream::Stdout).unwrap();
        assert_eq!((of("old"), of("log")), (b"one\n".to_vec(), b"two\n".to_vec()));
    }

    #[test]
    fn a_reopening_that_hangs_is_given_up() {
        let hanging = Hanging::new();
        let mut log = hanging.open();
        log.write(Stream::Stdout, &[b'x'; 200 * 1024], NOW);
        assert_eq!(log.reopen().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(log.close(NOW), 0);
    }

    #[test]
    fn lines_that_were_hit_are_lost_to_their_end() {
        let (mut losing, mut lost) = (Losing::default(), 0);
        assert_eq!(losing.take(b"a\nb", 3, &mut lost), b"a\nb");
        assert_eq!(losing.take(b"b\nc\nd", 4, &mut lost), b"");
        assert_eq!((losing.lines, lost), (2, 2));
        assert_eq!(losing.take(b"d", 4, &mut lost), b"");
        assert_eq!(losing.take(b"d\ne\n", 4, &mut lost), b"e\n");
        assert_eq!((losing.lines, lost), (3, 3));
        losing.take(b"ff", 1, &mut lost);
        losing.end(&mut lost);
        assert_eq!((losing.lines, lost), (4, 4));
    }
}
