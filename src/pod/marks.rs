//! Names by which this server knows again, from nothing but the name, what it has made.
//!
//! Other runtimes name things alike: containerd and CRI-O, too, bind network namespaces at `/run/netns/cni-<uuid>` and call
//! cgroups by 64 hexadecimal digits, and so does a second crimson, or one in a node that is itself a container. A sweep must
//! touch none of theirs. So every id, and the uuid of every namespace, ends in a mark: a sum over the part before it and a
//! random number that lies in `<root>/instance` since the first start. What bears the mark is ours whatever became of its
//! record; what does not is left alone. The mark guards against mistakes, not against forgers, who would be root.

use std::io;
use std::path::Path;

use types::{ContainerId, SandboxId};

use super::layout::Layout;

/// Which kind of name a mark is made for.
const ID: u8 = 1;
const NETNS: u8 = 2;

/// The server's number, if it is on disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    number: [u8; 16],
    is_kept: bool,
}

impl Marks {
    /// Reads the number, or makes it. Without it names are as unique as ever, and nothing can be proven by them.
    pub(super) fn open(layout: &Layout) -> Self {
        let path = layout.instance();
        match read(&path) {
            Ok(Some(number)) => return Self { number, is_kept: true },
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the number of this server cannot be read; what it leaves is not recognized");
                return Self::unknown();
            }
        }
        let made = Self { is_kept: true, ..Self::unknown() };
        match sys::atomic::write(&path, types::id::hex(&made.number).as_bytes(), 0o600) {
            Ok(()) => made,
            Err(error) => {
                let error = types::error::chain(&error);
                tracing::warn!(path = %path.display(), error, "the number of this server cannot be kept; what it leaves is not recognized");
                Self::unknown()
            }
        }
    }

    /// Reads the number and writes nothing.
    pub(super) fn read(layout: &Layout) -> Self {
        match read(&layout.instance()) {
            Ok(Some(number)) => Self { number, is_kept: true },
            Ok(None) | Err(_) => Self::unknown(),
        }
    }

    fn unknown() -> Self {
        Self { number: sys::random::bytes(), is_kept: false }
    }

    /// A new sandbox's id.
    pub(super) fn sandbox(&self) -> SandboxId {
        SandboxId::from_random(self.id())
    }

    /// A new container's id.
    pub(super) fn container(&self) -> ContainerId {
        ContainerId::from_random(self.id())
    }

    fn id(&self) -> [u8; 32] {
        let mut bytes: [u8; 32] = sys::random::bytes();
        let (head, tail) = bytes.split_at_mut(24);
        tail.copy_from_slice(&self.sum(ID, head).to_be_bytes());
        bytes
    }

    /// Whether this server has made this id.
    pub(super) fn is_id(&self, text: &str) -> bool {
        let Some(bytes) = unhex::<32>(text) else { return false };
        let (head, tail) = bytes.split_at(24);
        self.is_kept && tail == self.sum(ID, head).to_be_bytes()
    }

    /// A new namespace's name, `cni-<uuid>`: the form that node agents look for beneath `/run/netns`. The uuid is of version 8,
    /// which is left to its maker's own ideas.
    pub(super) fn netns(&self) -> String {
        let mut bytes: [u8; 16] = sys::random::bytes();
        bytes[6] = (bytes[6] & 0x0f) | 0x80;
        let (head, tail) = bytes.split_at_mut(8);
        tail.copy_from_slice(&self.netns_mark(head));
        let hex = types::id::hex(&bytes);
        let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
        format!("cni-{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
    }

    /// Whether this server has made a namespace of this name.
    pub(super) fn is_netns(&self, name: &str) -> bool {
        let digits: Option<String> = name.strip_prefix("cni-").map(|uuid| uuid.replace('-', ""));
        let Some(bytes) = digits.as_deref().and_then(unhex::<16>) else { return false };
        let (head, tail) = bytes.split_at(8);
        self.is_kept && tail == self.netns_mark(head)
    }

    fn netns_mark(&self, head: &[u8]) -> [u8; 8] {
        let mut mark = self.sum(NETNS, head).to_be_bytes();
        // The variant of all uuids that have a version.
        mark[0] = (mark[0] & 0x3f) | 0x80;
        mark
    }

    /// FNV-1a over the number, the kind and the name. It must not change: names outlive the program.
    fn sum(&self, kind: u8, head: &[u8]) -> u64 {
        let bytes = self.number.iter().chain([&kind]).chain(head);
        bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

fn read(path: &Path) -> io::Result<Option<[u8; 16]>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            unhex(text.trim()).map(Some).ok_or_else(|| io::Error::other("it is not 32 hexadecimal digits"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &Path) -> Layout {
        Layout::new(dir.join("root"), dir.join("state"))
    }

    #[test]
    fn a_server_knows_its_own_names_after_a_restart_and_no_others() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &other] {
            std::fs::create_dir(dir.path().join("root")).unwrap();
        }
        let ours = Marks::open(&layout(one.path()));
        let theirs = Marks::open(&layout(other.path()));
        let (id, container, netns) = (ours.sandbox(), ours.container(), ours.netns());
        let again = Marks::read(&layout(one.path()));
        assert!(again.is_id(id.as_str()) && again.is_id(container.as_str()) && again.is_netns(&netns));
        assert!(!theirs.is_id(id.as_str()) && !theirs.is_netns(&netns));
        assert!(!again.is_id(&"0".repeat(64)) && !again.is_id("") && !again.is_netns("cni-"));
        let theirs = "cni-0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0";
        assert!(!again.is_netns(theirs), "as containerd names it");
        assert_eq!(netns.len(), theirs.len());
        assert_eq!(netns.as_bytes()[18], b'8');
        assert!(matches!(netns.as_bytes()[23], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn without_a_number_on_disk_nothing_is_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(&layout(dir.path()));
        assert!(!marks.is_id(marks.sandbox().as_str()) && !marks.is_netns(&marks.netns()));
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("root/instance"), "damaged").unwrap();
        let marks = Marks::open(&layout(dir.path()));
        assert!(!marks.is_id(marks.sandbox().as_str()));
        assert_eq!(std::fs::read_to_string(dir.path().join("root/instance")).unwrap(), "damaged");
    }

    /// Names made by an earlier program must be known to a later one.
    #[test]
    fn the_sum_stays_what_it_is() {
        let marks = Marks { number: *b"0123456789abcdef", is_kept: true };
        assert_eq!(marks.sum(ID, b"head"), marks.sum(ID, b"head"));
        assert_ne!(marks.sum(ID, b"head"), marks.sum(NETNS, b"head"));
        let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in b"0123456789abcdef\x01head" {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        assert_eq!(marks.sum(ID, b"head"), sum);
    }
}
