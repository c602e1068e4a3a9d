//! Reading a plugin's output without letting it decide how much memory that takes.

use std::io;

use tokio::net::unix::pipe::Receiver;

/// What to do with bytes beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// Reading is an error: the output is needed whole.
    Refuse,
    /// They are read and forgotten.
    Drop,
}

/// One output stream of a running program.
#[derive(Debug)]
pub(crate) struct Capture {
    pipe: Option<Receiver>,
    bytes: Vec<u8>,
    limit: usize,
    excess: Excess,
}

/// Why capturing stopped.
#[derive(Debug)]
pub(crate) enum CaptureError {
    Full,
    Io(io::Error),
}

impl Capture {
    pub(crate) fn new(pipe: Receiver, limit: usize, excess: Excess) -> Self {
        Self { pipe: Some(pipe), bytes: Vec::new(), limit, excess }
    }

    /// Whether the other end is still open as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Waits for more bytes or the end, and takes what there is. May be dropped at any time without losing bytes: it
    /// waits only for readiness.
    pub(crate) async fn fill(&mut self) -> Result<(), CaptureError> {
        if let Some(pipe) = &self.pipe {
            pipe.readable().await.map_err(CaptureError::Io)?;
        }
        self.take_available()
    }

    /// Takes what is there without waiting. After the program's end this is all that it wrote, even when a process it
    /// left behind keeps the stream open.
    pub(crate) fn take_available(&mut self) -> Result<(), CaptureError> {
        let mut chunk = [0_u8; 8192];
        while let Some(pipe) = &self.pipe {
            match pipe.try_read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.keep(chunk.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CaptureError::Io(error)),
            }
        }
        Ok(())
    }

    fn keep(&mut self, chunk: &[u8]) -> Result<(), CaptureError> {
        let room = self.limit - self.bytes.len();
        if chunk.len() > room && self.excess == Excess::Refuse {
            return Err(CaptureError::Full);
        }
        self.bytes.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        Ok(())
    }

    /// Everything captured so far.
    pub(crate) fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}
