//! The sizes of a client's terminal, as they come.

use serde::Deserialize;
use tokio::io::AsyncReadExt;

use crate::backend::{Reader, Size};

/// More than this without a whole object is none.
const MOST: usize = 1024;

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// Reads JSON objects one after the other.
pub(super) struct Sizes {
    reader: Option<Reader>,
    read: Vec<u8>,
}

impl Sizes {
    pub(super) fn new(reader: Option<Reader>) -> Self {
        Self { reader, read: Vec::new() }
    }

    /// The next one; for ever pending when there are no more. What cannot be understood ends them. Safe to cancel.
    pub(super) async fn next(&mut self) -> Size {
        while let Some(reader) = &mut self.reader {
            match take(&mut self.read) {
                Ok(Some(size)) => return size,
                Ok(None) if matches!(reader.read_buf(&mut self.read).await, Ok(1..)) => {}
                Ok(None) | Err(Unusable) => self.reader = None,
            }
        }
        std::future::pending().await
    }
}

/// Bytes that are no sizes.
#[derive(Debug)]
pub(crate) struct Unusable;

/// Takes the first usable size out of what was read; a terminal without rows or columns has none.
pub(crate) fn take(read: &mut Vec<u8>) -> Result<Option<Size>, Unusable> {
    loop {
        let mut messages = serde_json::Deserializer::from_slice(read).into_iter::<Message>();
        let message = match messages.next() {
            Some(Ok(message)) => message,
            Some(Err(error)) if !error.is_eof() || read.len() > MOST => return Err(Unusable),
            Some(Err(_)) | None => return Ok(None),
        };
        let used = messages.byte_offset();
        read.drain(..used);
        let Message { width, height } = message;
        if width > 0 && height > 0 {
            return Ok(Some(Size { width, height }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Result<Vec<(u16, u16)>, Unusable> {
        let mut read = text.to_vec();
        let mut sizes = Vec::new();
        while let Some(size) = take(&mut read)? {
            sizes.push((size.width, size.height));
        }
        Ok(sizes)
    }

    #[test]
    fn objects_are_read_one_by_one_and_halves_wait() {
        assert_eq!(
            all(b"{\"Width\":80,\"Height\":24}\n{\"width\":1,\"height\":2}{\"Wid").unwrap(),
            [(80, 24), (1, 2)]
        );
        assert_eq!(all(b"{\"Width\":0,\"Height\":24}{\"Width\":3,\"Height\":4}").unwrap(), [(3, 4)]);
        assert_eq!(all(b" \n").unwrap(), []);
    }

    #[test]
    fn garbage_ends_them() {
        for text in
            [&b"hello"[..], b"{\"Width\":-1,\"Height\":1}", b"[]", b"{\"Width\":70000,\"Height\":1}", b"\xff"]
        {
            assert!(all(text).is_err(), "{text:?}");
        }
        assert!(all(&[b'['; MOST + 1]).is_err());
    }

    #[tokio::test]
    async fn a_size_may_come_in_pieces() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut sizes = Sizes::new(Some(Box::new(server)));
        let write = async {
            for piece in [&b"{\"Width\":10"[..], b"0,\"Heig", b"ht\":50}"] {
                tokio::io::AsyncWriteExt::write_all(&mut client, piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (size, ()) = tokio::join!(sizes.next(), write);
        assert_eq!(size, Size { width: 100, height: 50 });
    }
}
