//! The answer of ListContainers, whose entries may come encoded already.
//!
//! kubelet asks every second, and an entry is the same until its container changes: a server keeps what it has encoded once. On
//! the wire this is the message of `api.proto`, field by field.

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field};
use prost::{DecodeError, Message};

use crate::v1::Container;

/// The field of the entries.
const CONTAINERS: u32 = 1;

/// The containers that a filter lets through.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ListContainersResponse {
    /// What decoding fills.
    pub containers: Vec<Container>,
    /// More of them, each as [`ListContainersResponse::entry`] encodes it, one after the other. Never filled by decoding.
    pub encoded: Vec<u8>,
}

impl ListContainersResponse {
    /// One entry as it stands in the message.
    #[must_use]
    pub fn entry(container: &Container) -> Vec<u8> {
        let mut entry = Vec::with_capacity(message::encoded_len(CONTAINERS, container));
        message::encode(CONTAINERS, container, &mut entry);
        entry
    }
}

impl Message for ListContainersResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.encoded);
        self.containers.iter().for_each(|container| message::encode(CONTAINERS, container, buf));
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            CONTAINERS => message::merge_repeated(wire_type, &mut self.containers, buf, context),
            _ => skip_field(wire_type, tag, buf, context),
        }
    }

    fn encoded_len(&self) -> usize {
        self.encoded.len() + message::encoded_len_repeated(CONTAINERS, &self.containers)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::StreamContainersResponse;

    fn container(id: &str) -> Container {
        let labels = [("a".to_owned(), "b".to_owned())].into();
        Container { id: id.to_owned(), labels, created_at: 7, ..Container::default() }
    }

    #[test]
    fn encoded_entries_and_others_are_one_list() {
        let encoded = [
            ListContainersResponse::entry(&container("one")),
            ListContainersResponse::entry(&container("two")),
        ];
        let list = ListContainersResponse { containers: vec![container("three")], encoded: encoded.concat() };
        let bytes = list.encode_to_vec();
        assert_eq!(bytes.len(), list.encoded_len());
        let all = ["one", "two", "three"].map(container).to_vec();
        assert_eq!(ListContainersResponse::decode(&*bytes).unwrap().containers, all);
        // A generated message of the same form says the same.
        let generated = StreamContainersResponse { containers: all };
        assert_eq!(StreamContainersResponse::decode(&*bytes).unwrap(), generated);
        assert_eq!(
            ListContainersResponse::decode(&*generated.encode_to_vec()).unwrap().containers,
            generated.containers
        );
    }

    #[test]
    fn fields_of_later_versions_are_passed_over_and_garbage_is_refused() {
        let mut bytes = ListContainersResponse::entry(&container("one"));
        bytes.extend([0x10, 0x05]);
        assert_eq!(ListContainersResponse::decode(&*bytes).unwrap().containers, [container("one")]);
        ListContainersResponse::decode(&[0x08, 0x05][..]).unwrap_err();
    }
}
