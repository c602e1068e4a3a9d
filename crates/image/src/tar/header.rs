//! The 512-byte header block.

use super::{Kind, TarError};

pub(crate) const BLOCK: usize = 512;

/// A header whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Self, TarError> {
        let header = Self(block);
        let stored = number(header.field(148, 8)).ok_or(TarError::Checksum)?;
        let (unsigned, signed) = header.checksums();
        // Some old programs summed signed characters.
        if stored == unsigned || i64::try_from(stored) == Ok(signed) {
            Ok(header)
        } else {
            Err(TarError::Checksum)
        }
    }

    pub(super) fn bytes(&self) -> &[u8; BLOCK] {
        &self.0
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        number(self.field(124, 12)).ok_or(TarError::Number("size"))
    }

    pub(super) fn mode(&self) -> Result<u32, TarError> {
        let mode = number(self.field(100, 8)).ok_or(TarError::Number("mode"))?;
        u32::try_from(mode & 0o7777).map_err(|_| TarError::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<u64, TarError> {
        number(self.field(108, 8)).ok_or(TarError::Number("uid"))
    }

    pub(super) fn gid(&self) -> Result<u64, TarError> {
        number(self.field(116, 8)).ok_or(TarError::Number("gid"))
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        signed_number(self.field(136, 12)).ok_or(TarError::Number("mtime"))
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100))
    }

    /// The name, with ustar's prefix where the header is ustar; GNU headers keep other things in its place.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = if self.field(257, 6) == b"ustar\0" { text(self.field(345, 155)) } else { Vec::new() };
        if prefix.is_empty() { name } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn kind(&self, path: &[u8]) -> Result<Kind, TarError> {
        match self.type_flag() {
            // Before POSIX a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' if path.last() == Some(&b'/') => Ok(Kind::Directory),
            0 | b'0' | b'7' | b'S' => Ok(Kind::File),
            b'1' => Ok(Kind::HardLink),
            b'2' => Ok(Kind::Symlink),
            b'3' => self.device().map(|(major, minor)| Kind::CharDevice { major, minor }),
            b'4' => self.device().map(|(major, minor)| Kind::BlockDevice { major, minor }),
            b'5' | b'D' => Ok(Kind::Directory),
            b'6' => Ok(Kind::Fifo),
            other => Err(TarError::Type(char::from(other))),
        }
    }

    fn device(&self) -> Result<(u32, u32), TarError> {
        let part = |at, name| {
            number(self.field(at, 8)).and_then(|n| u32::try_from(n).ok()).ok_or(TarError::Number(name))
        };
        Ok((part(329, "device major")?, part(337, "device minor")?))
    }

    fn field(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    /// Both sums over the block with the checksum field read as spaces.
    fn checksums(&self) -> (u64, i64) {
        let byte = |(at, &b): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { b };
        let unsigned = self.0.iter().enumerate().map(|x| u64::from(byte(x))).sum();
        let signed = self.0.iter().enumerate().map(|x| i64::from(byte(x).cast_signed())).sum();
        (unsigned, signed)
    }
}

fn text(field: &[u8]) -> Vec<u8> {
    field.split(|&b| b == 0).next().unwrap_or_default().to_vec()
}

/// An unsigned number; a negative one is none.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    signed_number(field).and_then(|n| u64::try_from(n).ok())
}

/// Octal digits among spaces and zero bytes, or base-256 when the first bit is set.
fn signed_number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let start = field.iter().position(|&b| b != b' ').unwrap_or(field.len());
    let digits = field.get(start..)?.split(|&b| b == 0 || b == b' ').next()?;
    digits.iter().try_fold(0_i64, |sum, &digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big endian, the first bit being only the marker.
fn base256(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let start = i64::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    rest.iter().try_fold(start, |sum, &byte| sum.checked_mul(256)?.checked_add(i64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_dialect() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"12x4\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0]), Some(1 << 32));
        assert_eq!(signed_number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(&[0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
