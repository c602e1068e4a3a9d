//! The journal of systemd, spoken to in its own protocol: one datagram for each event, one field for each value.
//!
//! The message is the whole line that a person reads (`container stopped container.id=ab elapsed_ms=7`), so that `journalctl`
//! hides nothing; the same values are fields besides (`CONTAINER_ID=ab`), so that `journalctl CONTAINER_ID=ab` tells the story
//! of a container. Values of the spans around an event count as its own; an inner one wins.
//!
//! A journal that does not read must not hold up the daemon: a line waits [`PATIENCE`] at most, then lines are dropped until
//! there is room again, and their number is logged. What is too large for a datagram is cut.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::prefix::priority;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// How long one line may wait for a journal that is busy.
const PATIENCE: Duration = Duration::from_millis(500);
/// Asked for as the socket's buffer; the largest datagram follows from it.
const BUFFER: usize = 1 << 20;
/// The longest value that is sent: with a short one beside it, it fits the smallest buffer that a kernel gives.
const VALUE_MAX: usize = 48 << 10;

/// Writes events to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: OwnedFd,
    address: SocketAddrUnix,
    /// Lines dropped since the journal stopped reading; 0 while it reads.
    dropped: AtomicU64,
}

/// The values of one event or span, in order; the message stands apart.
#[derive(Debug, Default)]
struct Values {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Journal {
    /// The journal, when standard error of this process leads there.
    pub(super) fn behind_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = std::fs::File::from(io::stderr().as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
        if !names(&stream, stderr.dev(), stderr.ino()) {
            return None;
        }
        Self::at(SOCKET).ok()
    }

    fn at(path: &str) -> io::Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        // A smaller buffer is as good for all but the longest lines.
        set_socket_send_buffer_size(&socket, BUFFER).unwrap_or_default();
        Ok(Self { socket, address: SocketAddrUnix::new(path)?, dropped: AtomicU64::new(0) })
    }

    /// Each datagram carries the address anew, so that a journal that was restarted is found again.
    fn send(&self, datagram: &[u8]) {
        let missed = self.dropped.load(Ordering::Relaxed);
        if missed > 0 {
            let text = format!("{missed} lines were dropped while the journal did not read");
            let news = encode(tracing::Level::WARN, module_path!(), &text, &[]);
            if self.try_send(&news, SendFlags::DONTWAIT).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.dropped.fetch_sub(missed, Ordering::Relaxed);
        }
        if self.try_send(datagram, SendFlags::empty()).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn try_send(&self, datagram: &[u8], flags: SendFlags) -> Result<(), Errno> {
        let send = || rustix::net::sendto(&self.socket, datagram, flags | SendFlags::NOSIGNAL, &self.address);
        rustix::io::retry_on_intr(send).map(drop)
    }
}

/// Whether the variable that systemd sets names this file.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    stream == format!("{device}:{inode}")
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut values = Values::default();
            attributes.record(&mut values);
            span.extensions_mut().insert(values);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(values) = span.extensions_mut().get_mut::<Values>()
        {
            record.record(values);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut values = Values::default();
        event.record(&mut values);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Values>() {
                values.add_outer(outer);
            }
        }
        let meta: &Metadata<'_> = event.metadata();
        self.send(&encode(*meta.level(), meta.target(), &values.line(), &values.fields));
    }
}

impl Values {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }

    fn add_outer(&mut self, outer: &Self) {
        for (name, value) in &outer.fields {
            if !self.fields.iter().any(|(known, _)| known == name) {
                self.fields.push((name, value.clone()));
            }
        }
    }

    /// The message as a person reads it.
    fn line(&self) -> String {
        let mut line = self.message.clone();
        for (name, value) in &self.fields {
            line.push_str(&format!(" {name}={value}"));
        }
        line
    }
}

impl Visit for Values {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

fn encode(level: tracing::Level, target: &str, line: &str, fields: &[(&'static str, String)]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(256);
    put(&mut datagram, "MESSAGE", line);
    put(&mut datagram, "PRIORITY", &priority(level).to_string());
    put(&mut datagram, "SYSLOG_IDENTIFIER", "crimson");
    put(&mut datagram, "TARGET", target);
    for (name, value) in fields {
        if datagram.len() + value.len() > VALUE_MAX + VALUE_MAX / 2 {
            break;
        }
        put(&mut datagram, &field_name(name), value);
    }
    datagram
}

/// Values of several lines stand behind their length, all others behind an equals sign.
fn put(datagram: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(VALUE_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let value = value.as_bytes().get(..end).unwrap_or_default();
    datagram.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value);
    datagram.push(b'\n');
}

/// `pod.id` as the journal spells names: `POD_ID`. It keeps those with an underscore in front for itself.
fn field_name(name: &str) -> String {
    let upper = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    let upper: String = upper.collect();
    upper.trim_start_matches(|c: char| c == '_' || c.is_ascii_digit()).to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixDatagram;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    struct Bench {
        _dir: tempfile::TempDir,
        journal: UnixDatagram,
        path: String,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Bench { path: path.to_str().unwrap().to_owned(), journal, _dir: dir }
    }

    impl Bench {
        fn read(&self) -> BTreeMap<String, String> {
            let mut buffer = vec![0; 1 << 20];
            let length = self.journal.recv(&mut buffer).unwrap();
            decode(&buffer[..length])
        }

        fn log(&self, act: impl FnOnce()) {
            let journal = Journal::at(&self.path).unwrap();
            tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), act);
        }
    }

    fn decode(mut bytes: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| b"=\n".contains(byte)).unwrap();
            let name = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let counted = bytes[end] == b'\n';
            bytes = &bytes[end + 1..];
            let length = if counted {
                let (length, rest) = bytes.split_at(8);
                bytes = rest;
                usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap()
            } else {
                bytes.iter().position(|byte| *byte == b'\n').unwrap()
            };
            fields.insert(name, String::from_utf8(bytes[..length].to_vec()).unwrap());
            assert_eq!(bytes[length], b'\n');
            bytes = &bytes[length + 1..];
        }
        fields
    }

    #[test]
    fn values_of_event_and_spans_are_fields_and_stand_in_the_message() {
        let bench = bench();
        bench.log(|| {
            let outer =
                tracing::info_span!("rpc", rpc = "StopContainer", container.id = tracing::field::Empty);
            outer.record("container.id", "ab");
            let _outer = outer.enter();
            let inner = tracing::info_span!("step", rpc = "other");
            let _inner = inner.enter();
            tracing::warn!(elapsed_ms = 7, error = %"no such thing", "not stopped");
        });
        let fields = bench.read();
        assert_eq!(
            fields["MESSAGE"],
            "not stopped elapsed_ms=7 error=no such thing rpc=other container.id=ab"
        );
        assert_eq!(fields["PRIORITY"], "4");
        assert_eq!(fields["CONTAINER_ID"], "ab");
        assert_eq!(fields["RPC"], "other", "the inner span's");
        assert_eq!(fields["ERROR"], "no such thing");
        assert_eq!(fields["SYSLOG_IDENTIFIER"], "crimson");
    }

    #[test]
    fn values_of_several_lines_arrive_whole_and_long_ones_cut() {
        let bench = bench();
        let long = "ü".repeat(VALUE_MAX);
        bench.log(|| {
            tracing::error!(error = "one\ntwo", "three\nfour");
            tracing::info!(error = long, "long");
        });
        let fields = bench.read();
        assert_eq!((fields["ERROR"].as_str(), fields["PRIORITY"].as_str()), ("one\ntwo", "3"));
        assert_eq!(fields["MESSAGE"], "three\nfour error=one\ntwo");
        let message = &bench.read()["MESSAGE"];
        assert!(message.starts_with("long error=üü") && message.len() <= VALUE_MAX);
    }

    #[test]
    fn a_journal_that_does_not_read_costs_lines_and_not_the_daemon() {
        let bench = bench();
        let journal = Journal::at(&bench.path).unwrap();
        let begun = std::time::Instant::now();
        let mut sent = 0_u64;
        while journal.dropped.load(Ordering::Relaxed) < 200 {
            journal.send(b"MESSAGE=x\n");
            sent += 1;
        }
        assert!(begun.elapsed() < 100 * PATIENCE, "only the first line that found no room has waited");
        for _ in 0..sent - 200 {
            assert_eq!(bench.read()["MESSAGE"], "x");
        }
        journal.send(b"MESSAGE=y\n");
        assert!(bench.read()["MESSAGE"].starts_with("200 lines were dropped"));
        assert_eq!(bench.read()["MESSAGE"], "y");
    }

    #[test]
    fn the_stream_is_known_by_device_and_inode() {
        assert!(names("8:42", 8, 42));
        assert!(!names("8:42", 8, 43) && !names("", 8, 42) && !names("8:421", 8, 42));
    }

    #[test]
    fn names_are_spelled_as_the_journal_wants_them() {
        assert_eq!(field_name("pod.id"), "POD_ID");
        assert_eq!(field_name("_0elapsed-ms"), "ELAPSED_MS");
        for name in types::fields::ALL {
            assert!(field_name(name).len() <= 64 && !field_name(name).starts_with('_'));
        }
    }
}
