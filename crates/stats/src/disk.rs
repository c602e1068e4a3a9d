//! What a group moved to and from block devices, and what devices are called.

use std::collections::{BTreeMap, HashMap};

/// A group's traffic with one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskAccount {
    /// Major number of the device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// From the device.
    pub read: Transfers,
    /// To it.
    pub written: Transfers,
    /// What it was told to forget; `None` where the kernel does not count that.
    pub discarded: Option<Transfers>,
}

/// How much, in how many requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Bytes.
    pub bytes: u64,
    /// Requests.
    pub operations: u64,
}

/// `io.stat`: a line for each device, `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
pub(crate) fn of_v2(text: &str) -> Vec<DiskAccount> {
    text.lines().filter_map(line_of_v2).collect()
}

fn line_of_v2(line: &str) -> Option<DiskAccount> {
    let (device, figures) = line.split_once(' ')?;
    let (major, minor) = numbers(device)?;
    let figures: HashMap<&str, &str> = figures.split(' ').filter_map(|it| it.split_once('=')).collect();
    let figure = |name: &str| figures.get(name)?.parse().ok();
    let transfers =
        |bytes, operations| Some(Transfers { bytes: figure(bytes)?, operations: figure(operations)? });
    Some(DiskAccount {
        major,
        minor,
        // A device may be there for its settings alone.
        read: transfers("rbytes", "rios")?,
        written: transfers("wbytes", "wios")?,
        discarded: transfers("dbytes", "dios"),
    })
}

/// Two files of v1, of bytes and of requests: a line for each device and direction, `8:0 Read 1`, then sums.
pub(crate) fn of_v1(bytes: &str, operations: &str) -> Vec<DiskAccount> {
    let mut found = BTreeMap::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for ((major, minor), direction, count) in text.lines().filter_map(line_of_v1) {
            let fresh = DiskAccount { major, minor, ..DiskAccount::default() };
            let account: &mut DiskAccount = found.entry((major, minor)).or_insert(fresh);
            let transfers = match direction {
                "Read" => &mut account.read,
                "Write" => &mut account.written,
                "Discard" => account.discarded.get_or_insert_default(),
                // Sync and Async are the same requests told apart in another way.
                _ => continue,
            };
            *(if is_bytes { &mut transfers.bytes } else { &mut transfers.operations }) = count;
        }
    }
    found.into_values().collect()
}

fn line_of_v1(line: &str) -> Option<((u32, u32), &str, u64)> {
    let mut words = line.split(' ');
    Some((numbers(words.next()?)?, words.next()?, words.next()?.parse().ok()?))
}

fn numbers(device: &str) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Names of block devices, each asked for once.
#[derive(Debug, Default)]
pub struct DeviceNames {
    known: HashMap<(u32, u32), String>,
}

impl DeviceNames {
    /// The device's file, as `/dev/sda`; its numbers where it has none, as an overlay has.
    pub fn of(&mut self, major: u32, minor: u32) -> &str {
        self.known.entry((major, minor)).or_insert_with(|| name(major, minor))
    }
}

pub(crate) fn name(major: u32, minor: u32) -> String {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both(bytes: u64, operations: u64) -> Transfers {
        Transfers { bytes, operations }
    }

    #[test]
    fn devices_of_the_unified_hierarchy() {
        let text = "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=9 dios=1\n\
                    7:1 \n8:0 rbytes=1 wbytes=2 rios=3 wios=4 cost.usage=5\n9:1 cost.usage=3\nnonsense\n";
        let found = of_v2(text);
        assert_eq!(found.len(), 2);
        let first = DiskAccount {
            major: 8,
            minor: 16,
            read: both(1_459_200, 192),
            written: both(314_773_504, 353),
            discarded: Some(both(9, 1)),
        };
        assert_eq!(found[0], first);
        assert_eq!((found[1].read, found[1].written, found[1].discarded), (both(1, 3), both(2, 4), None));
    }

    #[test]
    fn devices_of_a_hierarchy_of_its_own() {
        let bytes = "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 12288\n254:0 Async 0\n254:0 Discard 0\n\
                     254:0 Total 12288\n8:0 Read 1\nTotal 12289\n";
        let operations = "254:0 Read 1\n254:0 Write 2\n254:0 Total 3\nTotal 3\n";
        let found = of_v1(bytes, operations);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].major, found[0].read), (8, both(1, 0)));
        assert_eq!((found[1].read, found[1].written), (both(4096, 1), both(8192, 2)));
        assert_eq!(found[1].discarded, Some(both(0, 0)));
        assert_eq!(of_v1("Total 0\n", "Total 0\n"), []);
    }

    #[test]
    fn what_is_no_block_device_has_its_numbers_for_a_name() {
        let mut names = DeviceNames::default();
        assert_eq!(names.of(0, 4_000_000), "0:4000000");
        assert_eq!(names.of(0, 4_000_000), "0:4000000");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "(?s)([0-9]{1,3}:[0-9]{1,3} (Read|rbytes=)?.{0,20}\n?){0,5}") {
            of_v1(&text, &text);
            of_v2(&text);
        }
    }
}
