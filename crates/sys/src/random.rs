//! Random bytes from the kernel, for ids and names that must not repeat.

use rustix::io::{Errno, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes.
///
/// A kernel that cannot give any (older than 3.17, or a filter that forbids the call) ends the process: ids made without
/// randomness would collide, and no caller could go on in a useful way.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if fill(&mut bytes).is_err() {
        std::process::abort();
    }
    bytes
}

fn fill(mut rest: &mut [u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        let count = retry_on_intr(|| getrandom(&mut *rest, GetRandomFlags::empty()))?;
        rest = rest.get_mut(count..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_the_whole_array_differently_each_time() {
        let (one, other) = (bytes::<600>(), bytes::<600>());
        assert_ne!(one, other);
        assert!(one[512..].iter().any(|b| *b != 0), "bytes beyond the first chunk are filled too");
    }
}
