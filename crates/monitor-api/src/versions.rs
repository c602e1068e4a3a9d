//! Which protocol a daemon and a monitor of different ages speak with each other.

use std::fmt;

/// The protocol's version. It only moves when old and new could misunderstand each other in spite of the rules of growth.
pub const VERSION: u32 = 1;

/// The versions that one side understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The first of them.
    pub oldest: u32,
    /// The last of them.
    pub newest: u32,
}

impl Versions {
    /// This build's.
    pub const OURS: Self = Self { oldest: 1, newest: VERSION };

    /// The newest version that both sides understand, if there is one.
    #[must_use]
    pub fn agree(self, theirs: Self) -> Option<u32> {
        let newest = self.newest.min(theirs.newest);
        (newest >= self.oldest.max(theirs.oldest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let side = |oldest, newest| Versions { oldest, newest };
        assert_eq!(side(1, 1).agree(side(1, 1)), Some(1));
        assert_eq!(side(1, 3).agree(side(1, 1)), Some(1));
        assert_eq!(side(1, 2).agree(side(2, 5)), Some(2));
        assert_eq!(side(1, 1).agree(side(2, 5)), None);
        assert_eq!(side(4, 5).agree(side(1, 3)), None);
    }
}
