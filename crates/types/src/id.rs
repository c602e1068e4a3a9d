//! Ids of sandboxes, containers, execs and images.
//!
//! Sandbox, container and exec ids are 64 lowercase hexadecimal characters: kubelet's embedded cAdvisor finds container
//! cgroups by a 64-character pattern. An image id is the digest of the image's config, written `sha256:<64 hex>`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Length of an id in characters.
pub const ID_LEN: usize = 64;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: expected {ID_LEN} lowercase hexadecimal characters")]
pub struct IdError(pub String);

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Makes an id from 32 random bytes; the caller supplies the randomness.
            #[must_use]
            pub fn from_random(bytes: [u8; 32]) -> Self {
                Self(hex(&bytes).into_boxed_str())
            }

            /// Takes a text that must be a whole id.
            ///
            /// # Errors
            /// [`IdError`] when the text is not 64 lowercase hexadecimal characters.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                if is_id(text) { Ok(Self(text.into())) } else { Err(IdError(text.to_owned())) }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first twelve characters, for people.
            #[must_use]
            pub fn short(&self) -> &str {
                self.0.get(..12).unwrap_or(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into_string()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

hex_id!(
    /// Identifies a pod sandbox for its whole life; never reused.
    SandboxId
);
hex_id!(
    /// Identifies a container for its whole life; never reused.
    ContainerId
);
hex_id!(
    /// Identifies one process started by exec in a container.
    ExecId
);

/// Identifies an image: the digest of its config blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub Digest);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Lowercase hexadecimal of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_lowercase_hex_characters() {
        let id = ContainerId::from_random([0xab; 32]);
        assert_eq!(id.as_str(), "ab".repeat(32));
        assert_eq!(ContainerId::parse(id.as_str()), Ok(id.clone()));
        assert_eq!(id.short(), "abababababab");
        for bad in ["", "ab", &"AB".repeat(32), &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn serde_refuses_what_parse_refuses() {
        let text = format!("{:?}", "0".repeat(63));
        assert!(serde_json_like(&text).is_err());
    }

    fn serde_json_like(text: &str) -> Result<SandboxId, IdError> {
        SandboxId::try_from(text.trim_matches('"').to_owned())
    }
}
