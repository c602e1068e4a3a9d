//! The kernel's mount table, `/proc/thread-self/mountinfo`, as values.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::MountError;

/// How mount events spread between a mount and its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither to nor from anywhere.
    Private,
    /// Both ways, with every member of its peer group.
    Shared,
    /// From its master only.
    Slave,
    /// From its master, and both ways with its own peers.
    SharedSlave,
    /// Private, and cannot be bound elsewhere.
    Unbindable,
}

/// One mount as the calling thread's mount namespace has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Unique among the mounts of the host as long as the mount lives.
    pub id: u64,
    /// The mount this one stands on.
    pub parent: u64,
    /// Which part of the filesystem is mounted: `/` for all of it.
    pub root: PathBuf,
    /// Where it is mounted, as seen from the thread's root.
    pub mount_point: PathBuf,
    /// The type of the filesystem.
    pub fstype: String,
    /// What is mounted: a device, or whatever the mounter wrote.
    pub source: PathBuf,
    /// The options of this mount followed by those of its filesystem, joined by a comma.
    pub options: String,
    /// How mount events spread.
    pub propagation: Propagation,
}

/// The mounts of the calling thread's mount namespace, in the kernel's order: of two at one place the later is on top.
pub(crate) fn read() -> Result<Vec<MountEntry>, MountError> {
    const TABLE: &str = "/proc/thread-self/mountinfo";
    let table = std::fs::read(TABLE).map_err(|e| MountError::new("read mount table", Path::new(TABLE), e))?;
    table.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(parse_checked).collect()
}

fn parse_checked(line: &[u8]) -> Result<MountEntry, MountError> {
    parse(line).ok_or_else(|| MountError::Table(String::from_utf8_lossy(line).into_owned()))
}

/// `id parent major:minor root mount-point options optional-fields... - type source super-options`
fn parse(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |at: usize| fields.get(at).and_then(|field| std::str::from_utf8(field).ok());
    Some(MountEntry {
        id: text(0)?.parse().ok()?,
        parent: text(1)?.parse().ok()?,
        root: unescape(fields.get(3)?),
        mount_point: unescape(fields.get(4)?),
        propagation: propagation(fields.get(6..dash)?),
        fstype: text(dash + 1)?.to_owned(),
        source: unescape(fields.get(dash + 2)?),
        options: match text(dash + 3) {
            Some(filesystem) => format!("{},{filesystem}", text(5)?),
            None => text(5)?.to_owned(),
        },
    })
}

fn propagation(optional: &[&[u8]]) -> Propagation {
    let has = |prefix: &[u8]| optional.iter().any(|field| field.starts_with(prefix));
    match (has(b"shared:"), has(b"master:")) {
        (true, true) => Propagation::SharedSlave,
        (true, false) => Propagation::Shared,
        (false, true) => Propagation::Slave,
        (false, false) if has(b"unbindable") => Propagation::Unbindable,
        (false, false) => Propagation::Private,
    }
}

/// Blank, tab, newline, backslash and `#` are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields() {
        let line = br"42 27 0:4 net:[4026532177] /run/a\040b\134c rw,nosuid shared:3 master:1 - nsfs my\011src rw,x=1";
        let entry = parse(line).unwrap();
        assert_eq!((entry.id, entry.parent), (42, 27));
        assert_eq!(entry.root, Path::new("net:[4026532177]"));
        assert_eq!(entry.mount_point, Path::new("/run/a b\\c"));
        assert_eq!((entry.fstype.as_str(), entry.source.as_path()), ("nsfs", Path::new("my\tsrc")));
        assert_eq!(
            (entry.options.as_str(), entry.propagation),
            ("rw,nosuid,rw,x=1", Propagation::SharedSlave)
        );
    }

    #[test]
    fn each_propagation_is_told_from_the_others() {
        let of =
            |fields: &str| parse(format!("1 2 0:1 / /x rw{fields} - t s o").as_bytes()).unwrap().propagation;
        assert_eq!(of(""), Propagation::Private);
        assert_eq!(of(" shared:9"), Propagation::Shared);
        assert_eq!(of(" master:9 propagate_from:2"), Propagation::Slave);
        assert_eq!(of(" unbindable"), Propagation::Unbindable);
    }

    #[test]
    fn an_unreadable_line_is_reported_with_its_text() {
        assert!(parse_checked(b"1 2 3").unwrap_err().to_string().contains("1 2 3"));
        assert!(parse(b"x 2 0:1 / /x rw - t s o").is_none());
    }

    #[test]
    fn this_hosts_table_is_readable() {
        assert!(read().unwrap().iter().any(|entry| entry.mount_point == Path::new("/proc")));
    }
}
