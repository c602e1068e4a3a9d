use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;

use super::*;
use crate::hash::digest_of;

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let data = vec![7; 300_000];
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", data.as_slice()).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Feeds `blob` in small pieces, as `announced` says it is.
fn run(blob: &[u8], announced: &Expected) -> Result<Unpacked, LayerError> {
    let pieces: Vec<Bytes> = blob.chunks(1000).map(Bytes::copy_from_slice).collect();
    let (sender, receiver) = tokio::sync::mpsc::channel(pieces.len().max(1));
    pieces.into_iter().for_each(|piece| sender.try_send(piece).unwrap());
    drop(sender);
    let root = tempfile::tempdir().unwrap();
    unpack_blob(receiver, announced, OwnedFd::from(fs::File::open(root.path()).unwrap()))
}

fn expected(blob: &[u8], content: &[u8]) -> Expected {
    Expected { digest: digest_of(blob), size: blob.len() as u64, diff_id: digest_of(content) }
}

#[test]
fn every_compression_is_recognised_by_its_bytes() {
    let plain = archive();
    let (first, second) = plain.split_at(1000);
    let members = [gzip(first), gzip(second)].concat();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd].concat();
    for blob in [plain.clone(), gzip(&plain), members, zstd, skippable] {
        assert_eq!(run(&blob, &expected(&blob, &plain)).unwrap().inodes, 2);
    }
}

#[test]
fn bytes_behind_the_archive_belong_to_the_diff_id() {
    let padded = [archive(), vec![0; 10_000]].concat();
    run(&gzip(&padded), &expected(&gzip(&padded), &padded)).unwrap();
}

#[test]
fn what_differs_from_its_digests_is_corrupt() {
    let plain = archive();
    let blob = gzip(&plain);
    let good = expected(&blob, &plain);
    let is_corrupt = |result: Result<Unpacked, LayerError>| matches!(result, Err(LayerError::Corrupt(_)));

    let mut flipped = blob.clone();
    flipped[500] ^= 1;
    assert!(is_corrupt(run(&flipped, &good)), "a flipped bit");
    assert!(is_corrupt(run(&blob[..900], &good)), "a cut");
    assert!(is_corrupt(run(&[blob.clone(), vec![1]].concat(), &good)), "a byte too many");
    assert!(is_corrupt(run(b"not an archive", &good)), "something else");
    assert!(is_corrupt(run(b"", &good)), "nothing");
    let other_content = Expected { diff_id: digest_of(b"x"), ..good.clone() };
    assert!(is_corrupt(run(&blob, &other_content)), "another diff id");
}

#[test]
fn a_malformed_archive_under_the_right_digest_is_the_images_fault() {
    let nonsense = vec![b'x'; 2000];
    for blob in [nonsense.clone(), gzip(&nonsense), gzip(&nonsense)[..20].to_vec()] {
        let result = run(&blob, &expected(&blob, &nonsense));
        assert!(matches!(result, Err(LayerError::Unpack(_))), "{result:?}");
    }
}
