//! The log file of one container.
//!
//! Each piece of output becomes one line, and the lines that a chunk completes go out together by one `writev(2)`, without
//! being copied. The container never waits for the disk to have room: what cannot be written is dropped and counted, and the
//! next chunk tries again. What an error has left of a line is taken back at once, so readers find whole lines only. When
//! writing goes on, a line on stderr says how many are missing at that place.
//!
//! States: *whole* (the file ends with a newline) and *torn* (it ends inside a line that counts as dropped, and that could not
//! be taken back; it is ended before the next one).

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

/// File systems on disks and in memory: ext4, XFS, Btrfs, F2FS, Bcachefs, ZFS, tmpfs, ramfs, and overlays, which are made of these.
const LOCAL: [i64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
];

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

    /// Says what is missing at the end, if there is room for that by now. Nothing more will be written.
    pub fn close(mut self, now: Timestamp) -> u64 {
        self.sink.write_lines(&Headers::new(Stream::Stderr, now), &[]);
        self.sink.dropped
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

    /// So many lines of a stream were lost before they came here, the one that waits for its newline among them.
    pub(crate) fn lose(&mut self, stream: Stream, lines: u64) {
        let (splitter, sink) = self.parts(stream);
        splitter.discard();
        sink.dropped += lines;
        sink.gap += lines;
    }

    /// Whether a write may not return: the file lies on no file system of this machine alone, or is no regular file.
    #[must_use]
    pub fn may_stall(&self) -> bool {
        let is_regular = self.sink.out.metadata().is_ok_and(|data| data.is_file());
        let is_local = rustix::fs::fstatfs(&self.sink.out).is_ok_and(|stat| LOCAL.contains(&stat.f_type));
        !(is_regular && is_local)
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
    now: Timestamp,
    full: [u8; HEADER_LEN],
    partial: [u8; HEADER_LEN],
}

impl Headers {
    fn new(stream: Stream, now: Timestamp) -> Self {
        Self { now, full: header(stream, now, Tag::Full), partial: header(stream, now, Tag::Partial) }
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

/// Where lines go.
trait Medium: Write {
    /// Undoes the last `len` bytes that were written.
    fn take_back(&mut self, len: usize) -> io::Result<()>;
}

impl Medium for File {
    /// We alone append to it, so its end is ours. Readers who saw the bytes already begin their last line anew.
    fn take_back(&mut self, len: usize) -> io::Result<()> {
        let size = self.metadata()?.len();
        let shorter = size.checked_sub(len as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.set_len(shorter)
    }
}

#[derive(Debug)]
struct Sink<W> {
    out: W,
    torn: bool,
    dropped: u64,
    /// Dropped lines that the file does not tell of yet.
    gap: u64,
    /// Why the last write failed.
    why: Option<io::Error>,
}

impl<W: Medium> Sink<W> {
    fn new(out: W) -> Self {
        Self { out, torn: false, dropped: 0, gap: 0, why: None }
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

    /// Writes at most [`BATCH`] lines, or drops them; before them, what has to be said of earlier ones.
    fn write_lines(&mut self, headers: &Headers, lines: &[Piece<'_, '_>]) {
        if lines.is_empty() && self.gap == 0 {
            return;
        }
        let mut slices = [IoSlice::new(&[]); BATCH * SLICES + 2];
        let mending: &[u8] = if self.torn { b"\n" } else { b"" };
        let notice = self.notice(headers.now);
        let parts = [mending, &notice]
            .into_iter()
            .chain(lines.iter().flat_map(|line| [headers.of(line.tag), line.head, line.tail, b"\n"]));
        let mut used = 0;
        for (slice, part) in slices.iter_mut().zip(parts.filter(|part| !part.is_empty())) {
            *slice = IoSlice::new(part);
            used += 1;
        }
        let written = self.write_all(slices.get_mut(..used).unwrap_or_default());
        self.account(lines, (mending.len(), notice.len()), written);
    }

    /// The line about those that are missing; empty when none is.
    fn notice(&self, now: Timestamp) -> Vec<u8> {
        if self.gap == 0 {
            return Vec::new();
        }
        let mut text = header(Stream::Stderr, now, Tag::Full).to_vec();
        let why = self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let plural = if self.gap == 1 { "line is" } else { "lines are" };
        text.extend_from_slice(format!("crimson: {} log {plural} missing here{why}\n", self.gap).as_bytes());
        text
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
                Err(error) => {
                    self.why = Some(error);
                    break;
                }
            }
        }
        written
    }

    /// Counts what went out and takes back what is not a whole line.
    fn account(&mut self, lines: &[Piece<'_, '_>], (mending, notice): (usize, usize), written: usize) {
        let Some(after_mending) = written.checked_sub(mending) else { return self.drop_lines(lines.len()) };
        self.torn = false;
        let told = after_mending >= notice;
        let (whole, rest) = whole_lines(lines, after_mending.saturating_sub(notice));
        // A notice that nothing follows would be written again and again.
        let useless_notice = whole == 0 && !lines.is_empty();
        let fragment = if told && !useless_notice { rest } else { after_mending };
        if fragment > 0 {
            self.torn = self.out.take_back(fragment).is_err();
        }
        if told && (self.torn || !useless_notice) {
            self.gap = 0;
        }
        self.drop_lines(lines.len() - whole);
        if self.gap == 0 {
            self.why = None;
        }
    }

    fn drop_lines(&mut self, count: usize) {
        self.dropped += count as u64;
        self.gap += count as u64;
    }
}

/// How many lines these bytes make up, and how many bytes are left of the next one.
fn whole_lines(lines: &[Piece<'_, '_>], mut bytes: usize) -> (usize, usize) {
    let mut whole = 0;
    for line in lines {
        let len = HEADER_LEN + line.head.len() + line.tail.len() + 1;
        if bytes < len {
            break;
        }
        bytes -= len;
        whole += 1;
    }
    (whole, bytes)
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
        keeps: bool,
    }

    impl Medium for Disk {
        fn take_back(&mut self, len: usize) -> io::Result<()> {
            if self.keeps {
                return Err(io::ErrorKind::Unsupported.into());
            }
            self.bytes.truncate(self.bytes.len() - len);
            self.room += len;
            Ok(())
        }
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

    fn missing(count: &str) -> String {
        line(&format!("crimson: {count} missing here: no storage space")).replace(" stdout ", " stderr ")
    }

    #[test]
    fn a_full_disk_drops_lines_and_the_place_is_marked_when_writing_resumes() {
        let mut sink = Sink::new(Disk { room: line("one").len() + 20, step: usize::MAX, ..Disk::default() });
        feed(&mut sink, "one\ntwo\nthree\n");
        assert_eq!((sink.dropped, sink.torn), (2, false));
        feed(&mut sink, "four\n");
        assert_eq!(sink.dropped, 3);
        sink.out.room = usize::MAX / 2;
        feed(&mut sink, "five\nsix\n");
        assert_eq!((sink.dropped, sink.torn), (3, false));
        let text = String::from_utf8(sink.out.bytes).unwrap();
        assert_eq!(text, [line("one"), missing("3 log lines are"), line("five"), line("six")].concat());
    }

    #[test]
    fn room_for_the_notice_alone_is_not_used_for_it() {
        let room = missing("9 log lines are").len() + 10;
        let mut sink = Sink::new(Disk { room: 5, step: usize::MAX, ..Disk::default() });
        feed(&mut sink, "one\n");
        for _ in 0..3 {
            sink.out.room = room;
            feed(&mut sink, "more\n");
        }
        assert_eq!((&sink.out.bytes[..], sink.dropped), (&b""[..], 4));
        sink.out.room = 1000;
        feed(&mut sink, "two\n");
        assert_eq!(
            String::from_utf8(sink.out.bytes).unwrap(),
            [missing("4 log lines are"), line("two")].concat()
        );
    }

    #[test]
    fn a_fragment_of_a_notice_is_taken_back_though_no_line_follows() {
        let mut sink = Sink::new(Disk { room: 5, step: usize::MAX, ..Disk::default() });
        feed(&mut sink, "one\n");
        sink.out.room = missing("1 log line is").len() - 10;
        feed(&mut sink, "open");
        assert_eq!((&sink.out.bytes[..], sink.torn), (&b""[..], false));
        sink.out.room = 1000;
        feed(&mut sink, "two\n");
        assert_eq!(
            String::from_utf8(sink.out.bytes).unwrap(),
            [missing("1 log line is"), line("two")].concat()
        );
    }

    #[test]
    fn where_nothing_can_be_taken_back_a_fragment_is_ended_first() {
        let mut sink = Sink::new(Disk {
            room: line("one").len() + 20,
            step: usize::MAX,
            keeps: true,
            ..Disk::default()
        });
        feed(&mut sink, "one\ntwo\n");
        assert_eq!((sink.dropped, sink.torn), (1, true));
        sink.out.room = usize::MAX / 2;
        feed(&mut sink, "five\n");
        let text = String::from_utf8(sink.out.bytes).unwrap();
        let fragment = line("two").split_at(20).0.to_owned();
        assert_eq!(text, format!("{}{fragment}\n{}{}", line("one"), missing("1 log line is"), line("five")));
    }

    #[test]
    fn a_file_system_that_was_full_holds_whole_lines_only() {
        let dir = tempfile::tempdir().unwrap();
        sys::mount::tmpfs(dir.path(), 64 * 1024, 0o700).unwrap();
        let (path, ballast) = (dir.path().join("0.log"), dir.path().join("ballast"));
        let mut log = LogWriter::open(&path, DEFAULT_LIMIT).unwrap();
        std::fs::write(&ballast, [0; 40 * 1024]).unwrap();
        let numbered = |range: std::ops::Range<u32>| range.map(|n| format!("line {n}\n")).collect::<String>();
        log.write(Stream::Stdout, numbered(0..1000).as_bytes(), NOW);
        let dropped = log.dropped_lines();
        assert!((1..1000).contains(&dropped), "{dropped}");
        std::fs::remove_file(&ballast).unwrap();
        log.write(Stream::Stdout, numbered(1000..1003).as_bytes(), NOW);
        let text = std::fs::read(&path).unwrap();
        sys::mount::unmount(dir.path()).unwrap();
        let lines: Vec<_> =
            text.split_inclusive(|byte| *byte == b'\n').map(|line| parse_line(line).unwrap()).collect();
        let notice = lines.iter().position(|line| line.stream == Stream::Stderr).unwrap();
        let expected =
            format!("crimson: {dropped} log lines are missing here: No space left on device (os error 28)");
        assert_eq!(std::str::from_utf8(lines[notice].content).unwrap(), expected);
        assert_eq!(notice as u64 + dropped, 1000);
        let kept = u32::try_from(notice).unwrap();
        let output = read_output(&text, Stream::Stdout).unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), numbered(0..kept) + &numbered(1000..1003));
    }

    #[test]
    fn a_gap_at_the_end_is_told_when_the_log_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogWriter::open(&path, DEFAULT_LIMIT).unwrap();
        log.sink.drop_lines(2);
        assert_eq!(log.close(NOW), 2);
        let text = line("crimson: 2 log lines are missing here").replace(" stdout ", " stderr ");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_removed_file_or_directory_costs_nothing_but_what_was_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, path) = (dir.path().join("logs"), dir.path().join("logs/0.log"));
        std::fs::create_dir(&logs).unwrap();
        let mut log = LogWriter::open(&path, DEFAULT_LIMIT).unwrap();
        log.write(Stream::Stdout, b"one\nbegun", NOW);
        std::fs::remove_dir_all(&logs).unwrap();
        log.write(Stream::Stdout, b"\nlost\n", NOW);
        assert_eq!(log.reopen().unwrap_err().kind(), io::ErrorKind::NotFound);
        log.write(Stream::Stdout, b"lost too\nopen", NOW);
        std::fs::create_dir(&logs).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, b" and here\n", NOW);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line("open and here"));
        assert_eq!(log.dropped_lines(), 0);
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
        fn a_disk_that_fills_up_anywhere_keeps_whole_lines_and_says_what_is_missing(
            rooms in prop::collection::vec(0usize..300, 1..5), step in 1usize..50, keeps in any::<bool>()
        ) {
            let mut sink = Sink::new(Disk { step, keeps, ..Disk::default() });
            for room in &rooms {
                sink.out.room = *room;
                feed(&mut sink, "first\nsecond\nthird\n");
            }
            sink.out.room = usize::MAX / 2;
            feed(&mut sink, "last\n");
            let lines: Vec<_> = sink.out.bytes.split_inclusive(|byte| *byte == b'\n').collect();
            let whole: Vec<Line<'_>> = lines.iter().filter_map(|line| parse_line(line).ok()).collect();
            prop_assert_eq!(whole.last().unwrap().content, b"last");
            prop_assert!(keeps || whole.len() == lines.len());
            let intact = whole.iter().filter(|l| [&b"first"[..], b"second", b"third", b"last"].contains(&l.content));
            let told: u64 = whole.iter().filter_map(|line| told(line.content)).sum();
            let all = rooms.len() as u64 * 3 + 1;
            prop_assert_eq!(sink.gap, 0);
            // A fragment that cannot be taken back may lack its newline alone.
            let intact = intact.count() as u64;
            prop_assert!(intact + sink.dropped == all || keeps && intact + sink.dropped >= all);
            // and one of a notice may look like a notice.
            prop_assert!(keeps || told == sink.dropped);
        }
    }

    fn told(content: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(content).ok()?.strip_prefix("crimson: ")?;
        text.split(' ').next()?.parse().ok()
    }
}
