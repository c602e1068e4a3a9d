//! The log file of one container.
//!
//! Each piece of output becomes one line, and the lines that a chunk completes go out together by one `writev(2)`, without
//! being copied. The container never waits for the disk to have room: what cannot be written is dropped and counted, and the
//! next chunk tries again. A line that was cut short by an error is ended first, so that the next one begins afresh.
//!
//! States: *whole* (the file ends with a newline) and *torn* (it ends inside a line that counts as dropped).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use types::Timestamp;

use crate::splitter::{Piece, Splitter};
use crate::timestamp::{TIMESTAMP_LEN, format_timestamp};
use crate::{Stream, Tag};

const MODE: u32 = 0o640;
const HEADER_LEN: usize = TIMESTAMP_LEN + " stdout F ".len();
/// Lines in one write: with [`SLICES`] for each, far below the kernel's limit of 1024.
const BATCH: usize = 48;
/// Header, head, tail, newline.
const SLICES: usize = 4;

/// Writes a container's output. After it is open only [`LogWriter::reopen`] can fail.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    sink: Sink<File>,
    stdout: Splitter,
    stderr: Splitter,
}

impl LogWriter {
    /// Opens the file for appending, makes it if need be. A line beyond `limit` bytes of content goes on in the next one.
    ///
    /// # Errors
    /// The system's, when the file cannot be opened; also when its last component is a symbolic link.
    pub fn open(path: &Path, limit: usize) -> io::Result<Self> {
        let sink = Sink::new(open(path)?);
        Ok(Self { path: path.to_owned(), sink, stdout: Splitter::new(limit), stderr: Splitter::new(limit) })
    }

    /// Takes a chunk that was read from `stream` at `now`.
    pub fn write(&mut self, stream: Stream, chunk: &[u8], now: Timestamp) {
        let (splitter, sink) = self.parts(stream);
        sink.write_chunk(splitter, chunk, &Headers::new(stream, now));
    }

    /// Ends a stream at `now`: what waits for a newline is written as a partial line.
    pub fn end(&mut self, stream: Stream, now: Timestamp) {
        let (splitter, sink) = self.parts(stream);
        let headers = Headers::new(stream, now);
        splitter.end(|piece| sink.write_lines(&headers, &[piece]));
    }

    /// Goes on in a new file at the same path, for rotation. What waits for a newline is kept and goes to the new file.
    ///
    /// # Errors
    /// The system's, when the file cannot be opened; the old file then stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.sink.out = open(&self.path)?;
        self.sink.torn = false;
        Ok(())
    }

    /// How many lines were dropped.
    #[must_use]
    pub fn dropped_lines(&self) -> u64 {
        self.sink.dropped
    }

    fn parts(&mut self, stream: Stream) -> (&mut Splitter, &mut Sink<File>) {
        match stream {
            Stream::Stdout => (&mut self.stdout, &mut self.sink),
            Stream::Stderr => (&mut self.stderr, &mut self.sink),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(path)
}

/// What lines of one stream and moment begin with.
struct Headers {
    full: [u8; HEADER_LEN],
    partial: [u8; HEADER_LEN],
}

impl Headers {
    fn new(stream: Stream, now: Timestamp) -> Self {
        Self { full: header(stream, now, Tag::Full), partial: header(stream, now, Tag::Partial) }
    }

    fn of(&self, tag: Tag) -> &[u8] {
        match tag {
            Tag::Full => &self.full,
            Tag::Partial => &self.partial,
        }
    }
}

fn header(stream: Stream, now: Timestamp, tag: Tag) -> [u8; HEADER_LEN] {
    let mut header = [b' '; HEADER_LEN];
    let letter = [u8::try_from(tag.letter()).unwrap_or(b'F')];
    let name = TIMESTAMP_LEN + 1;
    for (at, text) in
        [(0, &format_timestamp(now)[..]), (name, stream.as_str().as_bytes()), (name + 7, &letter)]
    {
        header.iter_mut().skip(at).zip(text).for_each(|(place, byte)| *place = *byte);
    }
    header
}

#[derive(Debug)]
struct Sink<W> {
    out: W,
    torn: bool,
    dropped: u64,
}

impl<W: Write> Sink<W> {
    fn new(out: W) -> Self {
        Self { out, torn: false, dropped: 0 }
    }

    fn write_chunk(&mut self, splitter: &mut Splitter, chunk: &[u8], headers: &Headers) {
        let nothing = Piece { head: &[], tail: &[], tag: Tag::Full };
        let mut batch = [nothing; BATCH];
        let mut len = 0;
        splitter.push(chunk, |piece| {
            // Its head lies in the splitter's memory, which the next piece reuses.
            if !piece.head.is_empty() {
                return self.write_lines(headers, &[piece]);
            }
            if let Some(place) = batch.get_mut(len) {
                *place = Piece { head: &[], tail: piece.tail, tag: piece.tag };
                len += 1;
            }
            if len == BATCH {
                self.write_lines(headers, &batch);
                len = 0;
            }
        });
        self.write_lines(headers, batch.get(..len).unwrap_or_default());
    }

    /// Writes at most [`BATCH`] lines, or drops them.
    fn write_lines(&mut self, headers: &Headers, lines: &[Piece<'_, '_>]) {
        if lines.is_empty() {
            return;
        }
        let mut slices = [IoSlice::new(&[]); BATCH * SLICES + 1];
        let mending: &[u8] = if self.torn { b"\n" } else { b"" };
        let parts = std::iter::once(mending)
            .chain(lines.iter().flat_map(|line| [headers.of(line.tag), line.head, line.tail, b"\n"]));
        let mut used = 0;
        for (slice, part) in slices.iter_mut().zip(parts.filter(|part| !part.is_empty())) {
            *slice = IoSlice::new(part);
            used += 1;
        }
        let written = self.write_all(slices.get_mut(..used).unwrap_or_default());
        self.account(lines, mending.len(), written);
    }

    /// Writes until all is out or an error comes; how many bytes went out.
    fn write_all(&mut self, mut slices: &mut [IoSlice<'_>]) -> usize {
        let mut written = 0;
        while !slices.is_empty() {
            match self.out.write_vectored(slices) {
                Ok(0) => break,
                Ok(len) => {
                    written += len;
                    IoSlice::advance_slices(&mut slices, len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        written
    }

    fn account(&mut self, lines: &[Piece<'_, '_>], mending: usize, written: usize) {
        let Some(mut left) = written.checked_sub(mending) else {
            self.dropped += lines.len() as u64;
            return;
        };
        let mut whole = 0;
        for line in lines {
            let text = HEADER_LEN + line.head.len() + line.tail.len();
            // A line that lacks its newline alone is mended by the next write.
            whole += usize::from(left >= text);
            if left <= text {
                break;
            }
            left -= text + 1;
        }
        self.torn = left > 0;
        self.dropped += (lines.len() - whole) as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;
    use crate::reader::{Line, parse_line, read_output};
    use crate::splitter::DEFAULT_LIMIT;

    const NOW: Timestamp = Timestamp(1_500_000_000);

    /// A disk with room for so many bytes; each write takes at most `step`.
    #[derive(Debug, Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
        step: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = bytes.len().min(self.room).min(self.step);
            if len == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.extend_from_slice(&bytes[..len]);
            self.room -= len;
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn feed(sink: &mut Sink<Disk>, text: &str) {
        sink.write_chunk(
            &mut Splitter::new(DEFAULT_LIMIT),
            text.as_bytes(),
            &Headers::new(Stream::Stdout, NOW),
        );
    }

    fn line(content: &str) -> String {
        format!("1970-01-01T00:00:01.500000000Z stdout F {content}\n")
    }

    #[test]
    fn a_line_is_written_as_kubelet_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogWriter::open(&path, 4).unwrap();
        log.write(Stream::Stdout, b"ab\r\nlonger\n", NOW);
        log.write(Stream::Stderr, b"op", NOW);
        log.write(Stream::Stdout, b"x\n", NOW);
        log.write(Stream::Stderr, b"en", NOW);
        log.end(Stream::Stderr, NOW);
        let at = "1970-01-01T00:00:01.500000000Z";
        let expected = format!(
            "{at} stdout F ab\n{at} stdout P long\n{at} stdout F er\n{at} stdout F x\n{at} stderr P open\n"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(log.dropped_lines(), 0);
    }

    #[test]
    fn a_full_disk_drops_lines_and_writing_resumes_on_a_fresh_line() {
        let mut sink = Sink::new(Disk { room: line("one").len() + 20, step: usize::MAX, ..Disk::default() });
        feed(&mut sink, "one\ntwo\nthree\n");
        assert_eq!((sink.dropped, sink.torn), (2, true));
        feed(&mut sink, "four\n");
        assert_eq!(sink.dropped, 3);
        sink.out.room = usize::MAX;
        feed(&mut sink, "five\n");
        assert_eq!((sink.dropped, sink.torn), (3, false));
        let text = String::from_utf8(sink.out.bytes).unwrap();
        assert_eq!(text, format!("{}{}\n{}", line("one"), line("two").split_at(20).0, line("five")));
    }

    #[test]
    fn a_device_that_is_always_full_never_fails_the_writer() {
        let mut log = LogWriter::open(Path::new("/dev/full"), DEFAULT_LIMIT).unwrap();
        log.write(Stream::Stdout, b"a\nb\nopen", NOW);
        log.end(Stream::Stdout, NOW);
        assert_eq!(log.dropped_lines(), 3);
    }

    #[test]
    fn reopening_keeps_the_open_line_for_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.old"));
        let mut log = LogWriter::open(&path, DEFAULT_LIMIT).unwrap();
        log.write(Stream::Stdout, b"one\nbegun", NOW);
        std::fs::rename(&path, &old).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, b" and ended\n", NOW);
        assert_eq!(std::fs::read_to_string(&old).unwrap(), line("one"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line("begun and ended"));
    }

    #[test]
    fn a_failed_reopen_leaves_the_old_file_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("old"));
        let mut log = LogWriter::open(&path, DEFAULT_LIMIT).unwrap();
        std::fs::rename(&path, &old).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(log.reopen().is_err());
        log.write(Stream::Stdout, b"still here\n", NOW);
        assert_eq!(std::fs::read_to_string(&old).unwrap(), line("still here"));
    }

    proptest! {
        #[test]
        fn what_a_container_wrote_is_what_a_reader_gets(
            chunks in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'a'), Just(b'\n')], 0..300), 0..5),
            limit in 1usize..40
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.log");
            let mut log = LogWriter::open(&path, limit).unwrap();
            for chunk in &chunks {
                log.write(Stream::Stdout, chunk, NOW);
            }
            log.end(Stream::Stdout, NOW);
            prop_assert_eq!(read_output(&std::fs::read(&path).unwrap(), Stream::Stdout).unwrap(), chunks.concat());
        }

        #[test]
        fn a_disk_that_fills_up_anywhere_leaves_only_whole_lines_and_fragments(room in 0usize..300, step in 1usize..50) {
            let mut sink = Sink::new(Disk { room, step, ..Disk::default() });
            feed(&mut sink, "first\nsecond\nthird\n");
            sink.out.room = usize::MAX;
            feed(&mut sink, "last\n");
            let lines: Vec<_> = sink.out.bytes.split_inclusive(|byte| *byte == b'\n').collect();
            let whole: Vec<Line<'_>> = lines.iter().filter_map(|line| parse_line(line).ok()).collect();
            prop_assert_eq!(whole.last().unwrap().content, b"last");
            let intact = whole.iter().filter(|l| [&b"first"[..], b"second", b"third", b"last"].contains(&l.content)).count();
            prop_assert_eq!(intact as u64 + sink.dropped, 4);
        }
    }
}
