//! Bytes to pieces of lines.
//!
//! A piece ends at a newline (which it does not contain, nor a carriage return before it) or, tagged partial, when it has
//! reached the limit and more of the line follows. The open piece is kept until one of the two is known, so the pieces do
//! not depend on how the bytes were cut on their way here. Memory is held only while a piece is open.

use crate::Tag;

/// The most bytes of content in one log line, unless told otherwise.
pub const DEFAULT_LIMIT: usize = 16 * 1024;

/// A finished piece. Its content is `head` followed by `tail`: what was kept from before, and what just came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'open, 'chunk> {
    /// Kept from earlier chunks. Only the first piece that a chunk completes can have one.
    pub head: &'open [u8],
    /// From the present chunk.
    pub tail: &'chunk [u8],
    /// How it ends.
    pub tag: Tag,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Splitter {
    limit: usize,
    open: Vec<u8>,
}

/// Where a piece ends in a chunk: so many bytes of content, then so many to skip.
struct Cut {
    content: usize,
    skip: usize,
    tag: Tag,
}

impl Splitter {
    /// A splitter whose pieces hold at most `limit` bytes (at least one).
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), open: Vec::new() }
    }

    /// Takes a chunk and calls `finish` for each piece that it completes.
    pub fn push<'chunk>(&mut self, mut chunk: &'chunk [u8], mut finish: impl FnMut(Piece<'_, 'chunk>)) {
        while let Some(cut) = self.next_cut(chunk) {
            let (tail, rest) = chunk.split_at(cut.content);
            finish(strip_return(Piece { head: &self.open, tail, tag: cut.tag }));
            self.open.clear();
            chunk = rest.get(cut.skip..).unwrap_or_default();
        }
        self.keep(chunk);
    }

    /// Ends the stream: an open piece becomes a partial one. The splitter is then as new.
    pub fn end(&mut self, mut finish: impl FnMut(Piece<'_, 'static>)) {
        if !self.open.is_empty() {
            finish(Piece { head: &self.open, tail: &[], tag: Tag::Partial });
        }
        self.open = Vec::new();
    }

    /// Forgets the open piece, the rest of which will not come.
    pub fn discard(&mut self) {
        self.open = Vec::new();
    }

    /// The bytes that wait for the end of their piece.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open.len()
    }

    fn next_cut(&self, chunk: &[u8]) -> Option<Cut> {
        let room = self.limit.saturating_sub(self.open.len());
        // One byte past the limit decides whether a piece of exactly the limit ends its line.
        let window = chunk.get(..=room).unwrap_or(chunk);
        match window.iter().position(|byte| *byte == b'\n') {
            Some(content) => Some(Cut { content, skip: 1, tag: Tag::Full }),
            None if window.len() > room => Some(Cut { content: room, skip: 0, tag: Tag::Partial }),
            None => None,
        }
    }

    fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            if self.open.is_empty() {
                self.open = Vec::new();
            }
            return;
        }
        self.open.reserve_exact(rest.len());
        self.open.extend_from_slice(rest);
    }
}

fn strip_return<'open, 'chunk>(piece: Piece<'open, 'chunk>) -> Piece<'open, 'chunk> {
    match (piece.tag, piece.head, piece.tail) {
        (Tag::Full, _, [tail @ .., b'\r']) => Piece { tail, ..piece },
        (Tag::Full, [head @ .., b'\r'], []) => Piece { head, ..piece },
        _ => piece,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (Vec<u8>, Tag);

    fn split(limit: usize, chunks: &[&[u8]]) -> Vec<Owned> {
        let mut splitter = Splitter::new(limit);
        let mut pieces = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |piece| pieces.push(owned(piece)));
        }
        splitter.end(|piece| pieces.push(owned(piece)));
        pieces
    }

    fn owned(piece: Piece<'_, '_>) -> Owned {
        ([piece.head, piece.tail].concat(), piece.tag)
    }

    fn check(limit: usize, input: &str, expected: &[(&str, Tag)]) {
        let expected: Vec<Owned> =
            expected.iter().map(|(text, tag)| (text.as_bytes().to_vec(), *tag)).collect();
        assert_eq!(split(limit, &[input.as_bytes()]), expected, "{input:?} with limit {limit}");
    }

    #[test]
    fn lines_end_at_newlines_and_at_the_limit() {
        use Tag::{Full, Partial};
        check(4, "", &[]);
        check(4, "a\nb\n", &[("a", Full), ("b", Full)]);
        check(4, "\n\n", &[("", Full), ("", Full)]);
        check(4, "a\r\n", &[("a", Full)]);
        check(4, "a\rb\n", &[("a\rb", Full)]);
        check(4, "abcd\n", &[("abcd", Full)]);
        check(4, "abcde\n", &[("abcd", Partial), ("e", Full)]);
        check(4, "abcdefgh", &[("abcd", Partial), ("efgh", Partial)]);
        check(4, "abcd\r\n", &[("abcd", Partial), ("", Full)]);
        check(4, "open", &[("open", Partial)]);
    }

    #[test]
    fn a_carriage_return_is_stripped_across_chunks() {
        assert_eq!(
            split(9, &[b"ab\r", b"\nc"]),
            [(b"ab".to_vec(), Tag::Full), (b"c".to_vec(), Tag::Partial)]
        );
    }

    #[test]
    fn no_memory_is_held_between_lines() {
        let mut splitter = Splitter::new(DEFAULT_LIMIT);
        splitter.push(&[b'x'; 5000], |_| {});
        assert_eq!(splitter.open_bytes(), 5000);
        splitter.push(b"\n", |_| {});
        assert_eq!(splitter.open.capacity(), 0);
    }

    fn output() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop_oneof![4 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r'), 1 => any::<u8>()],
            0..200,
        )
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_pieces(
            input in output(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8), limit in 1usize..12
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            at.extend([0, input.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            prop_assert_eq!(split(limit, &chunks), split(limit, &[&input]));
        }

        #[test]
        fn nothing_is_lost_but_the_return_before_a_newline(input in output(), limit in 1usize..12) {
            let mut joined = Vec::new();
            for (content, tag) in split(limit, &[&input]) {
                prop_assert!(content.len() <= limit);
                joined.extend(content);
                if tag == Tag::Full {
                    joined.push(b'\n');
                }
            }
            // A return that a full piece could not hold any more stays, so compare without those before newlines.
            prop_assert_eq!(without_returns(&joined), without_returns(&input));
        }
    }

    fn without_returns(bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(text) = line.strip_suffix(b"\n") else {
                kept.extend_from_slice(line);
                continue;
            };
            let end = text.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
            kept.extend_from_slice(&text[..end]);
            kept.push(b'\n');
        }
        kept
    }
}
