//! Streamed lists: one list in several messages, so that no node is too large for a message.

use std::pin::Pin;

use prost::Message;
use tokio_stream::Stream;
use tonic::{Response, Status};

/// What a message holds at most, in bytes, unless one item alone is larger. Clients take 16 MiB.
const CHUNK: usize = 1 << 20;

/// A stream of messages.
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The items in their order, in as few messages as hold them; an empty list is one empty message, so that a client can tell it
/// from a stream that was cut off.
pub(super) fn chunked<I, M, W>(items: Vec<I>, wrap: W) -> Response<Streamed<M>>
where
    I: Message + Send + 'static,
    M: Send + 'static,
    W: Fn(Vec<I>) -> M + Send + 'static,
{
    let chunks = split(items, CHUNK);
    Response::new(Box::pin(tokio_stream::iter(chunks.into_iter().map(move |chunk| Ok(wrap(chunk))))))
}

fn split<I: Message>(items: Vec<I>, limit: usize) -> Vec<Vec<I>> {
    let mut chunks = vec![Vec::new()];
    let mut filled = 0;
    for item in items {
        let size = item.encoded_len();
        if filled > 0 && filled + size > limit {
            chunks.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(last) = chunks.last_mut() {
            last.push(item);
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use cri_api::v1::Image;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_item_comes_once_and_no_message_is_too_large(sizes in prop::collection::vec(0_usize..300, 0..50)) {
            let items: Vec<Image> =
                sizes.iter().map(|size| Image { id: "x".repeat(*size), ..Image::default() }).collect();
            let chunks = split(items.clone(), 400);
            let within = |chunk: &Vec<Image>| {
                chunk.len() == 1 || chunk.iter().map(Message::encoded_len).sum::<usize>() <= 400
            };
            prop_assert!(chunks.iter().all(within));
            prop_assert!(chunks.len() == 1 || chunks.iter().all(|chunk| !chunk.is_empty()));
            prop_assert_eq!(chunks.concat(), items);
        }
    }
}
