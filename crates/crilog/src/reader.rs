//! Reading log lines back, as kubelet and crictl do. For tests and tools; the server itself never reads logs.

use types::Timestamp;

use crate::timestamp::parse_timestamp;
use crate::{Stream, Tag};

/// One line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was read from the container.
    pub time: Timestamp,
    /// Where the container wrote it.
    pub stream: Stream,
    /// Whether the line of output ends here.
    pub tag: Tag,
    /// What the container wrote.
    pub content: &'a [u8],
}

/// A line that is not of the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There are fewer than four fields, or no newline at the end.
    #[error("log line is cut short")]
    Short,
    /// The first field is no timestamp.
    #[error("log line has no timestamp")]
    Timestamp,
    /// The second field is neither `stdout` nor `stderr`.
    #[error("log line has no known stream")]
    Stream,
    /// The third field begins with neither `F` nor `P`.
    #[error("log line has no known tag")]
    Tag,
}

/// Reads one line, given with its newline.
///
/// # Errors
/// [`ParseError`] when it is not of the format.
pub fn parse_line(line: &[u8]) -> Result<Line<'_>, ParseError> {
    let line = line.strip_suffix(b"\n").ok_or(ParseError::Short)?;
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut field = || fields.next().ok_or(ParseError::Short);
    let time = parse_timestamp(field()?).ok_or(ParseError::Timestamp)?;
    let stream = match field()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Err(ParseError::Stream),
    };
    // Further tags may follow the first after a colon.
    let tag = match field()?.split(|byte| *byte == b':').next() {
        Some(b"F") => Tag::Full,
        Some(b"P") => Tag::Partial,
        _ => return Err(ParseError::Tag),
    };
    Ok(Line { time, stream, tag, content: field()? })
}

/// What the container wrote to `stream`, put together from a log file's content.
///
/// # Errors
/// [`ParseError`] of the first line that is not of the format.
pub fn read_output(log: &[u8], stream: Stream) -> Result<Vec<u8>, ParseError> {
    let mut output = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let line = parse_line(line)?;
        if line.stream != stream {
            continue;
        }
        output.extend_from_slice(line.content);
        if line.tag == Tag::Full {
            output.push(b'\n');
        }
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_writers_are_read_too() {
        let line = parse_line(b"2026-01-31T12:00:00.5Z stderr P:later a  b \n").unwrap();
        assert_eq!((line.stream, line.tag, line.content), (Stream::Stderr, Tag::Partial, &b"a  b "[..]));
        assert_eq!(parse_line(b"2026-01-31T12:00:00.5Z stdout F \n").unwrap().content, b"");
    }

    #[test]
    fn what_is_not_of_the_format_is_named() {
        let at = "2026-01-31T12:00:00Z";
        for (line, error) in [
            ("\n".to_owned(), ParseError::Timestamp),
            (format!("{at}\n"), ParseError::Short),
            (format!("{at} stdin F x\n"), ParseError::Stream),
            (format!("{at} stdout G x\n"), ParseError::Tag),
            (format!("{at} stdout F x"), ParseError::Short),
        ] {
            assert_eq!(parse_line(line.as_bytes()), Err(error), "{line:?}");
        }
    }
}
