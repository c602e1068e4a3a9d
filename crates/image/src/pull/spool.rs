//! A layer's bytes on their way from the network to the unpacker.
//!
//! By way of a part: the download writes to it as fast as the bytes come, the unpacker reads behind. The two wait for
//! nothing of each other, so that a slow disk is no stall of the download, and of a process that is killed next to
//! nothing is lost. Where there is no part the way is a bounded channel, and a slow unpacker slows the download down.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::parts::Part;

/// Where an unpacker gets a blob from; called on a blocking thread.
pub(crate) trait Chunks: Send {
    /// The next bytes; `None` when no more come.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

impl Chunks for mpsc::Receiver<Bytes> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.blocking_recv())
    }
}

/// The download's end of a part.
#[derive(Debug)]
pub(crate) struct PartWriter(Arc<Spool>);

/// The unpacker's end of a part.
#[derive(Debug)]
pub(crate) struct PartReader {
    spool: Arc<Spool>,
    offset: u64,
}

#[derive(Debug)]
struct Spool {
    part: Arc<Part>,
    ends: Mutex<Ends>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Ends {
    /// No more comes.
    is_written: bool,
    /// Nobody reads.
    is_unwanted: bool,
}

/// Both ends of a part, of which what is in it already counts as downloaded.
pub(crate) fn through(part: &Arc<Part>) -> (PartWriter, PartReader) {
    let spool = Arc::new(Spool { part: Arc::clone(part), ends: Mutex::default(), changed: Condvar::new() });
    (PartWriter(Arc::clone(&spool)), PartReader { spool, offset: 0 })
}

impl Spool {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartWriter {
    /// Bytes that need not be downloaded.
    pub(crate) fn len(&self) -> u64 {
        self.0.part.len()
    }

    /// Writes to the page cache. Whether more is wanted.
    pub(crate) fn put(&self, chunk: &[u8]) -> io::Result<bool> {
        self.0.part.append(chunk)?;
        let ends = self.0.ends();
        self.0.changed.notify_one();
        Ok(!ends.is_unwanted)
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        self.0.ends().is_written = true;
        self.0.changed.notify_one();
    }
}

impl Chunks for PartReader {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut ends = self.spool.ends();
        while self.spool.part.len() <= self.offset {
            if ends.is_written {
                return Ok(None);
            }
            ends = self.spool.changed.wait(ends).unwrap_or_else(PoisonError::into_inner);
        }
        drop(ends);
        let chunk = self.spool.part.read(self.offset)?;
        self.offset += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

impl Drop for PartReader {
    fn drop(&mut self) {
        self.spool.ends().is_unwanted = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::digest_of;
    use crate::parts::Parts;

    fn part(root: &std::path::Path) -> Arc<Part> {
        Arc::new(Parts::open(root).take(&digest_of(b"x"), u64::MAX, 0).unwrap())
    }

    #[test]
    fn the_reader_gets_what_was_there_what_comes_and_the_end() {
        let root = tempfile::tempdir().unwrap();
        part(root.path()).append(b"found ").unwrap();
        let (writer, mut reader) = through(&part(root.path()));
        assert_eq!(writer.len(), 6);
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            while let Some(chunk) = reader.next().unwrap() {
                all.extend_from_slice(&chunk);
            }
            all
        });
        for _ in 0..1000 {
            assert!(writer.put(b"come ").unwrap());
        }
        drop(writer);
        assert_eq!(reading.join().unwrap(), format!("found {}", "come ".repeat(1000)).into_bytes());
    }

    #[test]
    fn the_writer_learns_that_nobody_reads() {
        let root = tempfile::tempdir().unwrap();
        let (writer, reader) = through(&part(root.path()));
        assert!(writer.put(b"a").unwrap());
        drop(reader);
        assert!(!writer.put(b"b").unwrap());
    }
}
