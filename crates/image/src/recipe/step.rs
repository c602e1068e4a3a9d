//! Steps and the heads of saved parts, to bytes and back.

use super::{MAX_PATH, RecipeError};

const LITERAL: u8 = 0;
const CONTENT: u8 = 1;

/// One step of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    Literal(&'a [u8]),
    Content(Content<'a>),
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content<'a> {
    pub(crate) path: &'a [u8],
    /// The whole file's length.
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Bytes of a file that is in the tree no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Saved<'a> {
    pub(super) path: &'a [u8],
    /// Steps below this number mean this file, the later ones another.
    pub(super) step: u64,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
}

pub(super) fn put_literal(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(LITERAL);
    put_bytes(out, bytes);
}

pub(super) fn put_content(out: &mut Vec<u8>, content: &Content<'_>) {
    out.push(CONTENT);
    put_bytes(out, content.path);
    for number in [content.size, content.offset, content.len] {
        put_number(out, number);
    }
}

/// The head of a saved part; its bytes follow.
pub(super) fn put_saved_head(out: &mut Vec<u8>, path: &[u8], numbers: [u64; 3]) {
    put_bytes(out, path);
    for number in numbers {
        put_number(out, number);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// The step that `bytes` begin with, and what follows it; `None` at the end.
pub(super) fn next(bytes: &[u8]) -> Result<Option<(Step<'_>, &[u8])>, RecipeError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Ok(None) };
    match tag {
        LITERAL => {
            let (literal, rest) = take_bytes(rest)?;
            Ok(Some((Step::Literal(literal), rest)))
        }
        CONTENT => {
            let (path, rest) = take_path(rest)?;
            let ([size, offset, len], rest) = take_numbers(rest)?;
            if offset.checked_add(len).is_none_or(|end| end > size) {
                return Err(RecipeError::Malformed("a step reaches beyond its file"));
            }
            Ok(Some((Step::Content(Content { path, size, offset, len }), rest)))
        }
        _ => Err(RecipeError::Malformed("a step of an unknown kind")),
    }
}

/// A saved part, from a chunk of its own.
pub(super) fn saved(bytes: &[u8]) -> Result<Saved<'_>, RecipeError> {
    let (path, rest) = take_path(bytes)?;
    let ([step, size, offset], bytes) = take_numbers(rest)?;
    if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > size) {
        return Err(RecipeError::Malformed("a saved part reaches beyond its file"));
    }
    Ok(Saved { path, step, size, offset, bytes })
}

fn take_path(bytes: &[u8]) -> Result<(&[u8], &[u8]), RecipeError> {
    let (path, rest) = take_bytes(bytes)?;
    if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
        return Err(RecipeError::Malformed("a path that cannot be one"));
    }
    Ok((path, rest))
}

fn take_bytes(bytes: &[u8]) -> Result<(&[u8], &[u8]), RecipeError> {
    let (len, rest) = take_number(bytes)?;
    let len = usize::try_from(len).ok().filter(|len| *len <= rest.len());
    len.map(|len| rest.split_at(len)).ok_or(RecipeError::Malformed("a length beyond the chunk"))
}

fn take_numbers(mut bytes: &[u8]) -> Result<([u64; 3], &[u8]), RecipeError> {
    let mut numbers = [0; 3];
    for number in &mut numbers {
        (*number, bytes) = take_number(bytes)?;
    }
    Ok((numbers, bytes))
}

fn take_number(bytes: &[u8]) -> Result<(u64, &[u8]), RecipeError> {
    let mut number = 0_u64;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if at == 9 && bits > 1 {
            break;
        }
        number |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((number, bytes.get(at + 1..).unwrap_or_default()));
        }
    }
    Err(RecipeError::Malformed("a number that does not end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read() {
        for number in [0, 1, 127, 128, 1 << 35, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            bytes.push(7);
            assert_eq!(take_number(&bytes).unwrap(), (number, &[7][..]));
        }
        let content = Content { path: b"a/\xff", size: 900, offset: 300, len: 600 };
        let mut bytes = Vec::new();
        put_literal(&mut bytes, b"header");
        put_content(&mut bytes, &content);
        let (first, rest) = next(&bytes).unwrap().unwrap();
        let (second, rest) = next(rest).unwrap().unwrap();
        assert_eq!((first, second), (Step::Literal(b"header"), Step::Content(content)));
        assert!(next(rest).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            &[2][..],
            &[0],
            &[0, 5, 1],
            &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[1, 0, 1, 0, 1],
            &[1, 1, b'a', 1, 1, 1],
            &[1, 1, 0, 1, 0, 1],
        ] {
            assert!(next(bad).is_err(), "{bad:?}");
        }
    }
}
