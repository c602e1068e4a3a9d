use proptest::prelude::*;

use super::super::fuzzing::{Told, decode};
use super::client::{put_open, put_settings};
use super::*;

// What moby/spdystream, the library of Kubernetes, has sent.
const EXEC: &[u8] = include_bytes!("../recorded/exec");
const FORWARD: &[u8] = include_bytes!("../recorded/forward");
const OLD_FORWARD: &[u8] = include_bytes!("../recorded/old-forward");
const LONG_HEADER: &[u8] = include_bytes!("../recorded/long-header");
const TOO_LONG_HEADER: &[u8] = include_bytes!("../recorded/too-long-header");

/// What was recorded, in words; names of headers with their values, sorted.
fn words(recorded: &[u8]) -> Vec<String> {
    let mut decoder = Decoder::new();
    let mut input = recorded;
    let mut words = Vec::new();
    while let Some(event) = decoder.next(&mut input).unwrap() {
        words.push(match event {
            Event::Data { stream, bytes, last } => {
                let end = if last { " end" } else { "" };
                format!("{stream}: {}{end}", String::from_utf8_lossy(bytes).trim_end())
            }
            Event::Open { stream, headers, last: false, unidirectional: false } => {
                let mut pairs: Vec<_> =
                    headers.pairs().iter().map(|(name, value)| format!("{name}={value}")).collect();
                pairs.sort();
                format!("{stream} open {}", pairs.join(" "))
            }
            Event::Reset { stream } => format!("{stream} reset"),
            Event::GoAway => "away".to_owned(),
            Event::Ping(id) => format!("ping {id}"),
            other => format!("{other:?}"),
        });
    }
    words
}

#[test]
fn an_exec_of_the_go_client_is_understood() {
    let expected = [
        "1 open streamtype=error",
        "3 open streamtype=stdin",
        "5 open streamtype=stdout",
        "7 open streamtype=stderr",
        "9 open streamtype=resize",
        r#"9: {"Width":80,"Height":24}"#,
        "3: hello",
        "3:  end",
        "1 reset",
        "5 reset",
        "7 reset",
        "9 reset",
        "away",
    ];
    assert_eq!(words(EXEC), expected);
}

#[test]
fn a_port_forward_of_the_go_client_is_understood() {
    let digits = |count: usize| "0123456789".repeat(count);
    let expected = [
        "1 open port=8080 requestid=0 streamtype=error".to_owned(),
        "1:  end".to_owned(),
        "3 open port=8080 requestid=0 streamtype=data".to_owned(),
        format!("3: {}", digits(10)),
        "3:  end".to_owned(),
        "5 open port=8080 requestid=1 streamtype=error".to_owned(),
        "5:  end".to_owned(),
        "7 open port=8080 requestid=1 streamtype=data".to_owned(),
        format!("7: {}", digits(11)),
        "7 reset".to_owned(),
        "9 open port=8080 requestid=2 streamtype=error".to_owned(),
        "9:  end".to_owned(),
        "11 open port=8080 requestid=2 streamtype=data".to_owned(),
        format!("11: {}", digits(12)),
        "11:  end".to_owned(),
        "ping 1".to_owned(),
        "away".to_owned(),
    ];
    assert_eq!(words(FORWARD), expected);
    let old = ["1 open port=80 streamtype=error", "3 open port=80 streamtype=data", "3: x"];
    assert_eq!(words(OLD_FORWARD), old);
}

#[test]
fn long_headers_are_read_up_to_a_bound() {
    let words = words(LONG_HEADER);
    assert_eq!(words.len(), 2);
    assert_eq!(words[0].len(), "1 open streamtype=error x-long= x-two=b\0c".len() + 60_000);
    assert_eq!(words[1], "3 open streamtype=stdout");
    assert_eq!(decode([TOO_LONG_HEADER]), (Vec::new(), Some(HeaderError::TooLarge.into())));
}

#[test]
fn bytes_may_come_one_by_one() {
    for recorded in [EXEC, FORWARD, OLD_FORWARD, LONG_HEADER, TOO_LONG_HEADER] {
        assert_eq!(decode(recorded.chunks(1)), decode([recorded]));
    }
}

#[test]
fn every_frame_is_read_as_it_was_written() {
    let mut headers = HeaderWriter::default();
    let mut out = Vec::new();
    put_open(7, &[("a", "b")], true, &mut headers, &mut out);
    put_data(7, b"bytes", false, &mut out);
    put_data(7, b"", true, &mut out);
    put_reply(9, true, &mut headers, &mut out);
    put_reply(11, false, &mut headers, &mut out);
    put_reset(7, ResetReason::Cancel, &mut out);
    put_settings(&[(4, 100), (7, 1000), (7, 2000)], &mut out);
    put_settings(&[(4, 100)], &mut out);
    put_ping(3, &mut out);
    put_window(0, 5, &mut out);
    put_go_away(7, CloseReason::Done, &mut out);
    let other = |text: &str| Told::Other(text.to_owned());
    let expected = [
        other(r#"Open { stream: 7, headers: Headers([("a", "b")]), last: true, unidirectional: false }"#),
        Told::Data { stream: 7, bytes: b"bytes".to_vec(), last: true },
        other("Last { stream: 9 }"),
        other("Reset { stream: 7 }"),
        other("InitialWindow(2000)"),
        other("Ping(3)"),
        other("Window { stream: 0, more: 5 }"),
        other("GoAway"),
    ];
    assert_eq!(decode([&out[..]]), (expected.to_vec(), None));
}

#[test]
fn what_is_no_spdy_is_refused() {
    let refused = |bytes: &[u8]| decode([bytes]).1.unwrap();
    assert_eq!(refused(&[0x80, 2, 0, 6, 0, 0, 0, 4]), FrameError::Version(2));
    assert_eq!(refused(&[0xff; 8]), FrameError::Version(0x7fff));
    assert_eq!(refused(&[0; 8]), FrameError::Stream(0));
    assert_eq!(
        refused(&[0x80, 3, 0, 1, 0, 0, 0x40, 1]),
        FrameError::TooLarge { kind: 1, length: MAX_CONTROL + 1 }
    );
    for kind in [SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE] {
        let mut out = Vec::new();
        put_words(kind, &[], &mut out);
        assert_eq!(refused(&out), FrameError::Malformed(kind));
        out.clear();
        put_words(kind, &[1, 2, 3, 4], &mut out);
        let error = refused(&out);
        let block = matches!(kind, SYN_STREAM | SYN_REPLY | HEADERS);
        assert_eq!(matches!(error, FrameError::Headers(_)), block, "{error:?}");
        assert_eq!(error == FrameError::Malformed(kind), !block, "{error:?}");
    }
}

#[test]
fn frames_of_unknown_types_are_passed_over() {
    let mut out = Vec::new();
    for kind in [0, 5, 10, 0xffff] {
        put_words(kind, &[0xffff_ffff; 9], &mut out);
        put_words(kind, &[], &mut out);
    }
    put_ping(1, &mut out);
    assert_eq!(decode([&out[..]]), ([Told::Other("Ping(1)".to_owned())].to_vec(), None));
}

#[test]
fn payload_is_handed_on_as_it_comes() {
    let mut decoder = Decoder::new();
    let mut head: &[u8] = &[0, 0, 0, 1, FLAG_FIN, 0xff, 0xff, 0xff];
    assert_eq!(decoder.next(&mut head), Ok(None));
    let piece = [7; 1024 * 1024];
    for _ in 0..15 {
        let event = Event::Data { stream: 1, bytes: &piece, last: false };
        assert_eq!(decoder.next(&mut &piece[..]), Ok(Some(event)));
    }
    let mut rest = &piece[..];
    let Ok(Some(Event::Data { bytes, last: true, .. })) = decoder.next(&mut rest) else { panic!() };
    assert_eq!((bytes.len(), rest.len()), (1024 * 1024 - 1, 1));
    assert_eq!(decoder.held(), 0);
}

/// Up to `most` bytes, of which no two neighbours are the same.
fn payload(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), 0..most)
        .prop_map(|(first, length)| (first..=255).chain(0..first).cycle().take(length).collect())
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let put = |put: fn(&mut Vec<u8>, u32, Vec<u8>)| {
        (1u32..=STREAM_MASK, payload(2000)).prop_map(move |(number, bytes)| {
            let mut out = Vec::new();
            put(&mut out, number, bytes);
            out
        })
    };
    prop_oneof![
        4 => put(|out, number, bytes| put_data(number, &bytes, bytes.len() % 2 == 0, out)),
        1 => put(|out, number, _| put_ping(number, out)),
        1 => put(|out, number, _| put_reset(number, ResetReason::Refused, out)),
        1 => put(|out, number, _| put_window(number, number, out)),
        1 => put(|out, number, _| put_settings(&[(number, 1), (7, number)], out)),
        1 => put(|out, number, bytes| put_open(
            number,
            &[("a", &number.to_string())],
            bytes.is_empty(),
            // Each of these begins a zlib stream, so that only the first one can be read.
            &mut HeaderWriter::default(),
            out,
        )),
        1 => put(|out, _, bytes| out.extend_from_slice(&bytes[..bytes.len().min(20)])),
    ]
}

proptest! {
    #[test]
    fn bytes_mean_the_same_however_they_are_cut(
        frames in prop::collection::vec(frame(), 0..20),
        cuts in prop::collection::vec(1usize..300, 1..20),
        recorded in prop::sample::select(vec![EXEC, FORWARD]),
    ) {
        let frames = frames.concat();
        for bytes in [&frames[..], recorded] {
            let mut parts = Vec::new();
            let mut rest = bytes;
            for cut in cuts.iter().cycle() {
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                parts.push(part);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(decode(parts), decode([bytes]));
        }
    }

    #[test]
    fn nothing_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..500), control in any::<bool>(), kind in 0u8..12) {
        let mut bytes = bytes;
        if control && bytes.len() >= 8 {
            bytes[..6].copy_from_slice(&[0x80, 3, 0, kind, 0, 0]);
        }
        decode([&bytes[..]]);
    }

    #[test]
    fn data_is_read_as_it_was_written(stream in 1..=STREAM_MASK, bytes in payload(100_000), last in any::<bool>()) {
        prop_assume!(last || !bytes.is_empty());
        let mut out = Vec::new();
        put_data(stream, &bytes, last, &mut out);
        prop_assert_eq!(decode([&out[..]]), (vec![Told::Data { stream, bytes, last }], None));
    }
}
