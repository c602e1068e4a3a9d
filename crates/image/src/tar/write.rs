//! Headers of the archives that we write ourselves.

use super::header::BLOCK;

/// The header of a regular file that everybody may read and that belongs to nobody in particular. Names are ours and
/// short.
pub(crate) fn file_header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    put(&mut header, 0, name.as_bytes());
    put(&mut header, 100, b"0000644\0");
    put(&mut header, 108, b"0000000\0");
    put(&mut header, 116, b"0000000\0");
    put(&mut header, 124, &size_field(size));
    put(&mut header, 136, b"00000000000\0");
    put(&mut header, 148, b"        ");
    put(&mut header, 156, b"0");
    put(&mut header, 257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Eleven octal digits, or a number in base 256 where they do not suffice.
fn size_field(size: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if size < 1 << 33 {
        put(&mut field, 0, format!("{size:011o}").as_bytes());
    } else {
        put(&mut field, 0, &[0x80]);
        put(&mut field, 4, &size.to_be_bytes());
    }
    field
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in into.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Archive;
    use super::*;

    #[test]
    fn headers_are_read_by_others_and_by_us() {
        for size in [0, 511, (1 << 33) - 1, 1 << 33, 1 << 40] {
            let header = file_header("blobs/sha256/name", size);
            let theirs = tar::Header::from_byte_slice(&header);
            assert_eq!(theirs.entry_size().unwrap(), size);
            assert_eq!(theirs.path().unwrap().to_str(), Some("blobs/sha256/name"));
            assert_eq!(
                (theirs.mode().unwrap(), theirs.uid().unwrap(), theirs.mtime().unwrap()),
                (0o644, 0, 0)
            );
            let mut sum = [0; BLOCK];
            sum.copy_from_slice(&header);
            sum[148..156].fill(b' ');
            assert_eq!(theirs.cksum().unwrap(), sum.iter().map(|&b| u32::from(b)).sum::<u32>());
            let ours = Archive::new(&header[..]).next_entry().unwrap().unwrap();
            assert_eq!((ours.size, ours.path.as_slice()), (size, &b"blobs/sha256/name"[..]));
        }
    }
}
