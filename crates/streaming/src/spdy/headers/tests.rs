use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::*;

/// A client's compressor.
fn compressor() -> Compress {
    let mut compress = Compress::new(Compression::best(), true);
    compress.set_dictionary(DICTIONARY).unwrap();
    compress
}

fn compressed(compress: &mut Compress, plain: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(plain.len() * 2 + 1024);
    compress.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
    block
}

fn plain(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut plain = u32::try_from(pairs.len()).unwrap().to_be_bytes().to_vec();
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        plain.extend_from_slice(text.as_bytes());
    }
    plain
}

#[test]
fn the_dictionary_is_the_one_of_the_specification() {
    let mut compress = Compress::new(Compression::best(), true);
    assert_eq!(compress.set_dictionary(DICTIONARY).unwrap(), 0xe3c6_a7c2);
}

#[test]
fn a_block_builds_upon_those_before_it() {
    let (mut compress, mut reader) = (compressor(), HeaderReader::new());
    let first = compressed(&mut compress, &plain(&[("streamtype", "error"), ("port", "8080")]));
    let second = compressed(&mut compress, &plain(&[("streamtype", "error"), ("port", "8080")]));
    assert!(second.len() < first.len() / 2, "{} of {}", second.len(), first.len());
    for block in [&first, &second] {
        let headers = reader.read(block).unwrap();
        assert_eq!(headers.get("streamtype"), Some("error"));
        assert_eq!(headers.get("port"), Some("8080"));
        assert_eq!(headers.get("requestid"), None);
    }
    assert_eq!(HeaderReader::new().read(&second), Err(HeaderError::Compression));
}

#[test]
fn the_first_of_several_values_counts() {
    let block = compressed(&mut compressor(), &plain(&[("port", "1\x002")]));
    assert_eq!(HeaderReader::new().read(&block).unwrap().get("port"), Some("1"));
}

#[test]
fn a_small_block_that_grows_without_end_is_refused() {
    let bomb = compressed(&mut compressor(), &vec![0; 16 * 1024 * 1024]);
    assert!(bomb.len() < 32 * 1024, "{}", bomb.len());
    let mut reader = HeaderReader::new();
    assert_eq!(reader.read(&bomb), Err(HeaderError::TooLarge));
    assert!(reader.held() <= 2 * MAX_BLOCK + 1024, "{}", reader.held());
}

#[test]
fn the_largest_block_is_read_and_one_byte_more_is_not() {
    let value = |length: usize| "x".repeat(length - 4 - 4 - 1 - 4);
    let of = |length| compressed(&mut compressor(), &plain(&[("a", &value(length))]));
    assert!(HeaderReader::new().read(&of(MAX_BLOCK)).is_ok());
    assert_eq!(HeaderReader::new().read(&of(MAX_BLOCK + 1)), Err(HeaderError::TooLarge));
}

#[test]
fn more_headers_than_anybody_needs_are_refused() {
    let many = |count| compressed(&mut compressor(), &plain(&vec![("a", "b"); count]));
    assert_eq!(HeaderReader::new().read(&many(MAX_HEADERS)).unwrap().pairs().len(), MAX_HEADERS);
    assert_eq!(HeaderReader::new().read(&many(MAX_HEADERS + 1)), Err(HeaderError::TooLarge));
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    let good = plain(&[("a", "b")]);
    let more = [&good[..], &[0]].concat();
    let many = [&[0, 0, 0, 2][..], &good[4..]].concat();
    let long = [&good[..4], &[0xff; 4], &good[8..]].concat();
    let binary = [0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0];
    for wrong in [&more[..], &many, &long, &good[..good.len() - 1], &[], &[0, 0, 0], &binary] {
        let block = compressed(&mut compressor(), wrong);
        assert_eq!(HeaderReader::new().read(&block), Err(HeaderError::Malformed), "{wrong:?}");
    }
}

#[test]
fn another_dictionary_and_the_end_of_the_stream_are_refused() {
    let mut other = Compress::new(Compression::best(), true);
    other.set_dictionary(b"another one").unwrap();
    let block = compressed(&mut other, &plain(&[("a", "b")]));
    assert_eq!(HeaderReader::new().read(&block), Err(HeaderError::Compression));

    let mut ended = Vec::with_capacity(1024);
    compressor().compress_vec(&plain(&[("a", "b")]), &mut ended, FlushCompress::Finish).unwrap();
    assert_eq!(HeaderReader::new().read(&ended), Err(HeaderError::Compression));
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("[a-z]{1,20}", "[ -~\\x00äß]{0,40}"), 0..8)
}

fn as_pairs(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(blocks in prop::collection::vec(headers(), 1..8), large in prop_oneof![9 => 0usize..10, 1 => 0usize..65_000]) {
        let (mut writer, mut reader) = (HeaderWriter::default(), HeaderReader::new());
        let large = [("large".to_owned(), "y".repeat(large))].to_vec();
        for pairs in blocks.iter().chain([&large]) {
            let mut block = Vec::new();
            writer.write(&as_pairs(pairs), &mut block);
            let headers = reader.read(&block).unwrap();
            prop_assert_eq!(headers.pairs(), as_pairs(pairs));
        }
    }

    #[test]
    fn what_a_compressor_writes_is_read(blocks in prop::collection::vec(headers(), 1..8)) {
        let (mut compress, mut reader) = (compressor(), HeaderReader::new());
        for pairs in &blocks {
            let block = compressed(&mut compress, &plain(&as_pairs(pairs)));
            let headers = reader.read(&block).unwrap();
            prop_assert_eq!(headers.pairs(), as_pairs(pairs));
        }
    }

    #[test]
    fn nothing_is_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 0..300), whole in any::<bool>()) {
        if whole {
            bytes.splice(0..0, STREAM_HEAD);
        }
        let mut reader = HeaderReader::new();
        drop(reader.read(&bytes));
        drop(parse(&bytes));
        prop_assert!(reader.held() <= 2 * MAX_BLOCK + 1024);
    }
}
