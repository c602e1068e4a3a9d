//! Lines for standard error that begin with their priority, as the journal and the kernel's log read it: `<6>text`.

use std::io::{self, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The priority of syslog that stands for a level. Notices (5) are left to others: we have no such level.
pub(super) fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Makes writers that put the priority in front.
#[derive(Debug)]
pub(super) struct Prefixed<M> {
    inner: M,
}

impl<M> Prefixed<M> {
    pub(super) fn new(inner: M) -> Self {
        Self { inner }
    }
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Prefixed<M> {
    type Writer = PrefixedWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        PrefixedWriter { inner: self.inner.make_writer(), priority: priority(Level::INFO) }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        PrefixedWriter { inner: self.inner.make_writer_for(meta), priority: priority(*meta.level()) }
    }
}

/// Writes whole lines.
#[derive(Debug)]
pub(super) struct PrefixedWriter<W> {
    inner: W,
    priority: u8,
}

impl<W: Write> Write for PrefixedWriter<W> {
    /// The formatter hands over each line in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut text = format!("<{}>", self.priority).into_bytes();
        text.extend_from_slice(line);
        // In one piece, so that lines of several threads do not mix.
        self.inner.write_all(&text)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_its_priority() {
        let mut written = Vec::new();
        let mut writer = PrefixedWriter { inner: &mut written, priority: priority(Level::WARN) };
        writer.write_all(b"{\"message\":\"late\"}\n").unwrap();
        assert_eq!(written, b"<4>{\"message\":\"late\"}\n");
    }

    #[test]
    fn graver_levels_have_smaller_priorities() {
        let order = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG].map(priority);
        assert_eq!(order, [3, 4, 6, 7]);
        assert_eq!(priority(Level::TRACE), 7);
    }
}
