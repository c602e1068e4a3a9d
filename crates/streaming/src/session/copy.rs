//! Bytes in one direction, through one buffer that grows with the stream's speed.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::GRACE;
use super::activity::Activity;
use crate::backend::{Reader, Writer};

/// What a silent stream costs.
const SMALLEST: usize = 4 * 1024;
/// What a pipe holds.
const LARGEST: usize = 64 * 1024;

/// Why nothing more is copied.
#[derive(Debug)]
pub(super) enum Stop {
    /// All that there was has been written.
    End,
    /// The reading side broke.
    Reading(io::Error),
    /// The writing side takes no more.
    Writing,
}

/// What a copy shares with its session.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) activity: Activity,
    /// From then on the reader ends when it is silent for [`GRACE`]. Time that the writer takes does not count.
    pub(super) ending: CancellationToken,
}

impl Flow {
    pub(super) fn new(activity: &Activity) -> Self {
        Self { activity: activity.clone(), ending: CancellationToken::new() }
    }

    /// Copies until one side ends, and leaves both open.
    pub(super) async fn copy(&self, reader: &mut Reader, writer: &mut Writer) -> Stop {
        let mut buffer = vec![0; SMALLEST];
        loop {
            let count = match self.read(reader, &mut buffer).await {
                Ok(0) => return Stop::End,
                Ok(count) => count,
                Err(error) => return Stop::Reading(error),
            };
            self.activity.touch();
            let (data, rest) = buffer.split_at(count);
            if writer.write_all(data).await.is_err() {
                return Stop::Writing;
            }
            self.activity.touch();
            if rest.is_empty() && count < LARGEST {
                buffer.resize(count * 4, 0);
            }
        }
    }

    /// Reads on for nobody, so that the other end is not held up.
    pub(super) async fn discard(&self, reader: &mut Reader) {
        let mut buffer = vec![0; SMALLEST];
        while matches!(self.read(reader, &mut buffer).await, Ok(1..)) {}
    }

    async fn read(&self, reader: &mut Reader, buffer: &mut [u8]) -> io::Result<usize> {
        tokio::select! {
            biased;
            count = reader.read(buffer) => count,
            () = self.over() => Ok(0),
        }
    }

    async fn over(&self) {
        self.ending.cancelled().await;
        sleep(GRACE).await;
    }
}
