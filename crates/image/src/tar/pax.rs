//! PAX records: `LENGTH KEY=VALUE\n`, where the length counts itself and values are bytes.

use super::TarError;
use super::sparse::{self, Region};

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Far more attributes than any file has.
const MAX_XATTRS: usize = 256;
/// Global records are kept and apply to every entry that follows.
const MAX_GLOBAL: usize = 256;
const MAX_GLOBAL_BYTES: usize = 64 << 10;

/// The records of one header, in order; of equal keys the last counts.
#[derive(Debug, Default, Clone)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let mut records = Vec::new();
        // Some writers pad with zero bytes.
        while bytes.first().is_some_and(|&b| b != 0) {
            let (record, rest) = split_record(bytes)?;
            records.push(record);
            bytes = rest;
        }
        Ok(Self(records))
    }

    pub(super) fn extend(&mut self, newer: Self) -> Result<(), TarError> {
        for (key, value) in newer.0 {
            self.0.retain(|(known, _)| *known != key);
            self.0.push((key, value));
            let bytes: usize = self.0.iter().map(|(key, value)| key.len() + value.len()).sum();
            if self.0.len() > MAX_GLOBAL || bytes > MAX_GLOBAL_BYTES {
                return Err(TarError::Pax("too many global records"));
            }
        }
        Ok(())
    }

    /// These records with those of one entry on top.
    pub(super) fn overlaid_by(&self, newer: Self) -> Self {
        if self.0.is_empty() {
            return newer;
        }
        Self(self.0.iter().cloned().chain(newer.0).collect())
    }

    /// The value of `key`; an empty value deletes, as POSIX says.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|(known, _)| known == key.as_bytes());
        found.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, TarError> {
        self.get(key).map(|value| decimal(value).ok_or(TarError::Number(key))).transpose()
    }

    /// A time in seconds with an optional fraction, as seconds and nanoseconds.
    pub(super) fn time(&self, key: &'static str) -> Result<Option<(i64, u32)>, TarError> {
        self.get(key).map(|value| time(value).ok_or(TarError::Number(key))).transpose()
    }

    pub(super) fn xattrs(&self) -> Result<Vec<Record>, TarError> {
        let mut xattrs: Vec<Record> = Vec::new();
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(XATTR).filter(|name| !name.is_empty()) {
                xattrs.retain(|(known, _)| known != name);
                xattrs.push((name.to_vec(), value.clone()));
                if xattrs.len() > MAX_XATTRS {
                    return Err(TarError::Pax("too many extended attributes"));
                }
            }
        }
        Ok(xattrs)
    }

    /// The regions of a sparse file in PAX format 0.0 (repeated records) or 0.1 (one list).
    pub(super) fn sparse_regions(&self) -> Result<Vec<Region>, TarError> {
        if let Some(list) = self.get("GNU.sparse.map") {
            return sparse::parse_list(list);
        }
        let value_of = |wanted: &'static str| {
            self.0.iter().filter(move |(key, _)| key == wanted.as_bytes()).map(|(_, value)| decimal(value))
        };
        let pairs = value_of("GNU.sparse.offset").zip(value_of("GNU.sparse.numbytes"));
        pairs
            .map(|(offset, len)| {
                Ok(Region { offset: offset.ok_or(TarError::Sparse)?, len: len.ok_or(TarError::Sparse)? })
            })
            .collect()
    }
}

type Record = (Vec<u8>, Vec<u8>);

fn split_record(bytes: &[u8]) -> Result<(Record, &[u8]), TarError> {
    let space = bytes.iter().take(20).position(|&b| b == b' ').ok_or(TarError::Pax("no length"))?;
    let (digits, _) = bytes.split_at(space);
    let len = decimal(digits).and_then(|n| usize::try_from(n).ok()).ok_or(TarError::Pax("no length"))?;
    if len <= space + 1 || len > bytes.len() {
        return Err(TarError::Pax("wrong length"));
    }
    let (record, rest) = bytes.split_at(len);
    let body = record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n"));
    let body = body.ok_or(TarError::Pax("no line end"))?;
    let equals = body.iter().position(|&b| b == b'=').ok_or(TarError::Pax("no value"))?;
    let (key, value) = body.split_at(equals);
    let value = value.get(1..).unwrap_or_default();
    Ok(((key.to_vec(), value.to_vec()), rest))
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, &digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let nanos = parts.next().map_or(Some(0), fraction)?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// The first nine digits behind the point, as nanoseconds.
fn fraction(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    Some(padded.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte() {
        let records = Records::parse(b"29 SCHILY.xattr.user.a=x\ny\0=\n12 path=a/b\n").unwrap();
        assert_eq!(records.xattrs().unwrap(), [(b"user.a".to_vec(), b"x\ny\0=".to_vec())]);
        assert_eq!(records.get("path"), Some(b"a/b".as_slice()));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"path=a\n"[..],
            b"5 a=b\n",
            b"99 path=a\n",
            b"0 a=b\n",
            b"10 path=ab",
            b"8 nokey\n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        for bad in [&b""[..], b".", b"1.x", b"x", b"--1"] {
            assert_eq!(time(bad), None);
        }
    }
}
