//! Messages, for any bytes.

use bytes::Bytes;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::Message;

use super::message::{Garbage, Incoming, Protocol};

const ALL: [Protocol; 6] = [
    Protocol::Binary,
    Protocol::Base64,
    Protocol::BinaryV4,
    Protocol::Base64V4,
    Protocol::BinaryV5,
    Protocol::Tunnel,
];

fn decode(protocol: Protocol, message: &[u8]) -> Result<Incoming, Garbage> {
    protocol.decode(Bytes::copy_from_slice(message))
}

proptest! {
    #[test]
    fn any_message_is_something(message in prop::collection::vec(any::<u8>(), 0..64), which in 0usize..6) {
        let read = decode(ALL[which], &message);
        prop_assert_eq!(message.is_empty(), read == Ok(Incoming::Nothing));
    }

    #[test]
    fn what_is_written_is_read_as_the_same(
        channel in 0usize..255,
        data in prop::collection::vec(any::<u8>(), 0..300),
        which in 0usize..6,
    ) {
        let channel = u8::try_from(channel % ALL[which].channels()).unwrap();
        let message = match ALL[which].encode(channel, &data) {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(ALL[which].decode(message), Ok(Incoming::Data(channel, data.into())));
    }
}

#[test]
fn base64_has_a_digit_for_its_channel() {
    let hello = Ok(Incoming::Data(0, Bytes::from_static(b"foo\n")));
    assert_eq!(decode(Protocol::Base64, b"0Zm9vCg=="), hello);
    assert_eq!(decode(Protocol::Base64V4, b"0Zm9vCg==\r\n"), hello);
    assert_eq!(decode(Protocol::Base64, b"0Zm9vCg"), Err(Garbage::Base64));
    assert_eq!(Protocol::Base64.encode(1, b"\n"), Message::text("1Cg=="));
}

#[test]
fn only_the_newest_protocol_closes_channels() {
    assert_eq!(decode(Protocol::BinaryV5, b"\xff\x00"), Ok(Incoming::Close(0)));
    assert_eq!(decode(Protocol::BinaryV5, b"\xff"), Err(Garbage::Close));
    assert_eq!(decode(Protocol::BinaryV4, b"\xff\x00"), Ok(Incoming::Data(255, Bytes::from_static(b"\0"))));
}

#[test]
fn a_connection_has_channels_for_some_ports_only() {
    let ports = [80; 200];
    for (protocol, most) in [(Protocol::BinaryV4, 127), (Protocol::Base64V4, 40)] {
        assert!(super::check_ports(protocol, &ports[..0]).is_err());
        assert!(super::check_ports(protocol, &ports[..most]).is_ok());
        assert!(super::check_ports(protocol, &ports[..=most]).is_err());
    }
}
