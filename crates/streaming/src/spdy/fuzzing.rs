//! What the fuzzer of `fuzz/` calls for SPDY, with the promises that hold for every input.

use super::frame::{Decoder, Event, FrameError, MAX_CONTROL};
use super::headers::{HeaderReader, HeaderWriter, MAX_BLOCK};

/// An event that can be kept. What comes for one stream in a row is one piece of data, however it was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Data { stream: u32, bytes: Vec<u8>, last: bool },
    Other(String),
}

/// What these bytes mean, coming in these parts.
pub(super) fn decode<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Told>, Option<FrameError>) {
    let mut decoder = Decoder::new();
    let mut told = Vec::new();
    for mut part in parts {
        loop {
            match decoder.next(&mut part) {
                Ok(Some(event)) => add(&mut told, event),
                Ok(None) => break,
                Err(error) => return (told, Some(error)),
            }
        }
        assert!(part.is_empty(), "nothing is left over");
        assert!(decoder.held() <= 2 * MAX_CONTROL, "{} bytes are held", decoder.held());
    }
    (told, None)
}

fn add(told: &mut Vec<Told>, event: Event<'_>) {
    let Event::Data { stream, bytes, last } = event else {
        return told.push(Told::Other(format!("{event:?}")));
    };
    match told.last_mut() {
        Some(Told::Data { stream: before, bytes: collected, last: end }) if *before == stream && !*end => {
            collected.extend_from_slice(bytes);
            *end = last;
        }
        _ => told.push(Told::Data { stream, bytes: bytes.to_vec(), last }),
    }
}

/// Bytes mean the same however they are cut. The first one says how.
pub(crate) fn frames(input: &[u8]) {
    let Some((cut, bytes)) = input.split_first() else { return };
    let whole = decode([bytes]);
    let cut = decode(bytes.chunks(usize::from(*cut).max(1)));
    assert_eq!(whole, cut);
}

/// Blocks, each after its length in two bytes: whatever is read is written and read as the same again, within bounds.
pub(crate) fn headers(mut input: &[u8]) {
    let (mut reader, mut writer, mut again) =
        (HeaderReader::new(), HeaderWriter::default(), HeaderReader::new());
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let (block, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*length))));
        input = rest;
        let read = reader.read(block);
        assert!(reader.held() <= 2 * MAX_BLOCK + 1024, "{} bytes are held", reader.held());
        let Ok(headers) = read else { return };
        let mut written = Vec::new();
        writer.write(&headers.pairs(), &mut written);
        assert_eq!(again.read(&written).as_ref(), Ok(&headers));
    }
}
