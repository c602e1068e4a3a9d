use std::process::Command;

use super::*;

fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        let mut buffer = [0; 7];
        loop {
            let count = archive.read_data(&mut buffer)?;
            if count == 0 {
                break;
            }
            data.extend_from_slice(&buffer[..count]);
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn one_file(name: &str, data: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o4755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(99);
    builder.append_data(&mut header, name, data).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn reads_what_an_independent_writer_wrote() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    for name in ["short", "dir/file", &long] {
        let entries = read_all(&one_file(name, b"hello")).unwrap();
        let [(entry, data)] = entries.as_slice() else { panic!("one entry in {name}") };
        assert_eq!(entry.path, name.as_bytes());
        assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o4755, 7, 8, (99, 0)));
        assert_eq!((entry.size, data.as_slice()), (5, b"hello".as_slice()));
    }
}

#[test]
fn pax_records_override_the_header() {
    let mut builder = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 5] = [
        ("path", b"\xff\xfe"),
        ("uid", b"4000000000"),
        ("mtime", b"1.5"),
        ("SCHILY.xattr.user.x", b"a\nb"),
        ("size", b"3"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(one_file("ignored", b"abc"));
    let entries = read_all(&bytes).unwrap();
    let [(entry, data)] = entries.as_slice() else { panic!("one entry") };
    assert_eq!(entry.path, b"\xff\xfe");
    assert_eq!((entry.uid, entry.mtime), (4_000_000_000, (1, 500_000_000)));
    assert_eq!(entry.xattrs, [(b"user.x".to_vec(), b"a\nb".to_vec())]);
    assert_eq!(data, b"abc");
}

/// The last bytes of a sparse file and all its formats, as GNU tar writes them.
#[test]
fn sparse_files_of_every_format_have_their_regions() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("holes")).unwrap();
    for block in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", block * 100_000).unwrap();
    }
    file.set_len(5_000_000).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let output = Command::new("tar")
            .args(["--sparse", "--hole-detection=raw", "-cf", "-", "-C"])
            .arg(dir.path())
            .args(format)
            .arg("holes")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let entries = read_all(&output.stdout).unwrap();
        let [(entry, data)] = entries.as_slice() else { panic!("one entry in {format:?}") };
        assert_eq!((entry.path.as_slice(), entry.size), (b"holes".as_slice(), 5_000_000), "{format:?}");
        let regions = entry.regions.as_deref().unwrap();
        let mut content = vec![0_u8; 5_000_000];
        let mut rest = data.as_slice();
        for region in regions {
            let at = usize::try_from(region.offset).unwrap();
            let (now, later) = rest.split_at(usize::try_from(region.len).unwrap());
            content[at..at + now.len()].copy_from_slice(now);
            rest = later;
        }
        assert!(data.len() < 1_000_000 && rest.is_empty(), "{format:?}");
        assert_eq!(content, std::fs::read(dir.path().join("holes")).unwrap(), "{format:?}");
    }
}

#[test]
fn malformed_archives_are_refused() {
    let good = one_file("name", b"hello");
    let mut checksum = good.clone();
    checksum[0] ^= 1;
    assert!(matches!(read_all(&checksum), Err(TarError::Checksum)));
    assert!(matches!(read_all(&good[..700]), Err(TarError::Truncated)));
    assert!(matches!(read_all(&good[..100]), Err(TarError::Truncated)));
    assert!(matches!(read_all(&good[..514]), Err(TarError::Truncated)));
    assert!(read_all(&[]).unwrap().is_empty());
    assert!(read_all(&[0; 1024]).unwrap().is_empty());

    let with = |change: &dyn Fn(&mut tar::Header)| {
        let mut header = tar::Header::new_gnu();
        header.set_path("name").unwrap();
        header.set_size(0);
        change(&mut header);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let kind = |byte| with(&|header| header.set_entry_type(tar::EntryType::new(byte)));
    assert!(matches!(read_all(&kind(b'Z')), Err(TarError::Type('Z'))));
    assert!(matches!(read_all(&kind(b'M')), Err(TarError::Type('M'))));
    let huge = with(&|header| {
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(1 << 40);
    });
    assert!(matches!(read_all(&huge), Err(TarError::ExtensionTooLarge(_))));
    let endless = with(&|header| header.set_size(u64::MAX >> 1));
    assert!(read_all(&endless).is_err());
    let nobody = with(&|header| header.set_uid(u64::from(u32::MAX)));
    assert!(matches!(read_all(&nobody), Err(TarError::Number("uid"))));
}

proptest::proptest! {
    /// Headers with right checksums and wrong everything else.
    #[test]
    fn damaged_headers_never_panic(
        damage in proptest::collection::vec((0_usize..512, proptest::num::u8::ANY), 0..20),
        tail in proptest::collection::vec(proptest::num::u8::ANY, 0..2048),
    ) {
        let mut bytes = one_file("name", b"hello");
        for (at, value) in damage {
            bytes[at] = value;
        }
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes[..512].iter().map(|&b| u32::from(b)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.truncate(1024);
        bytes.extend(tail);
        drop(read_all(&bytes));
    }
}
