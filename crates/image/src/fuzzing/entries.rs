//! Archives for the fuzzer: of entries that it chooses, and with checksums that fit.

/// The unit of archives.
pub(super) const BLOCK: usize = 512;

const MAGIC: &[u8] = b"ustar";
/// Parts of names and of what links point to. Few, so that entries meet; the sandbox has an `outside` beside the root.
const PARTS: [&str; 16] = [
    "a",
    "b",
    "c",
    "..",
    ".",
    "",
    "a",
    "b",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    ".wh..wh.x",
    ".wh.",
    "outside",
    "file",
    "d",
];
/// Types of entries, those with data more often.
const KINDS: &[u8; 16] = b"000055221134670L";
/// Bytes of the input for one entry.
const ENTRY: usize = 8;

/// An archive of the entries that `input` describes, [`ENTRY`] bytes for each.
pub(super) fn archive(input: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for description in input.as_chunks::<ENTRY>().0 {
        append(&mut archive, description);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn append(archive: &mut Vec<u8>, &[kind, name1, name2, link1, link2, mode, size, more]: &[u8; ENTRY]) {
    let kind = KINDS.get(usize::from(kind % 16)).copied().unwrap_or(b'0');
    let (mut name, link) = (path(name1, name2), path(link1, link2));
    if more & 1 == 1 {
        name.insert(0, b'/');
    }
    if more & 2 == 2 {
        push_pax(archive, &[(&b"SCHILY.xattr.user.test"[..], &link), (b"mtime", b"1.5")]);
    }
    if more & 4 == 4 {
        push_pax(archive, &[(&b"path"[..], &name), (b"linkpath", &link)]);
    }
    let data = if matches!(kind, b'0' | b'7' | b'L') { usize::from(size) * 5 } else { 0 };
    let mode = (u32::from(mode) << 4 | u32::from(more)) & 0o7777;
    push(archive, kind, &name, &link, mode, &vec![size; data]);
}

/// Up to four parts.
fn path(first: u8, second: u8) -> Vec<u8> {
    let parts = [first & 15, first >> 4, second & 15, second >> 4].map(usize::from);
    // A last part of nothing makes a shorter name.
    let end = parts.iter().rposition(|&part| part != 5).map_or(0, |last| last + 1);
    let parts = parts.iter().take(end).filter_map(|&part| PARTS.get(part).map(|part| part.as_bytes()));
    parts.collect::<Vec<_>>().join(&b'/')
}

fn push_pax(archive: &mut Vec<u8>, records: &[(&[u8], &[u8])]) {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (rest + 1..rest + 6).find(|len| len.to_string().len() + rest == *len).unwrap_or(rest);
        data.extend_from_slice(format!("{len} ").as_bytes());
        data.extend_from_slice(&[key, &b"="[..], value, &b"\n"[..]].concat());
    }
    push(archive, b'x', b"pax", b"", 0o644, &data);
}

fn push(archive: &mut Vec<u8>, kind: u8, name: &[u8], link: &[u8], mode: u32, data: &[u8]) {
    let mut header = [0; BLOCK];
    put(&mut header, 0, name.get(..100).unwrap_or(name));
    put(&mut header, 100, format!("{mode:07o}").as_bytes());
    put(&mut header, 108, b"0000000");
    put(&mut header, 116, b"0000000");
    put(&mut header, 124, format!("{:011o}", data.len()).as_bytes());
    put(&mut header, 136, b"14000000000");
    put(&mut header, 156, &[kind]);
    put(&mut header, 157, link.get(..100).unwrap_or(link));
    put(&mut header, 257, b"ustar\x0000");
    put(&mut header, 329, b"0000001");
    put(&mut header, 337, b"0000003");
    seal(&mut header);
    archive.extend_from_slice(&header);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    header.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

/// Whether this block is to have a checksum.
pub(super) fn looks_like_header(block: &[u8]) -> bool {
    block.get(257..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Writes the checksum that the block's bytes have.
pub(super) fn seal(block: &mut [u8]) {
    put(block, 148, b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}
