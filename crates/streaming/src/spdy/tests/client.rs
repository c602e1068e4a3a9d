//! A client that sends what it is told and keeps what it gets.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::frame::client::{put_open, put_settings};
use super::super::frame::{
    CloseReason, Decoder, ResetReason, put_data, put_go_away, put_ping, put_reset, put_window,
};
use super::super::fuzzing::Told;
use super::super::headers::HeaderWriter;

/// What the network between holds.
pub(super) const NETWORK: usize = 64 * 1024;

pub(super) struct Client {
    io: DuplexStream,
    decoder: Decoder,
    told: VecDeque<Told>,
    headers: HeaderWriter,
    out: Vec<u8>,
}

pub(super) fn client() -> (Client, DuplexStream) {
    let (near, far) = duplex(NETWORK);
    let client = Client {
        io: near,
        decoder: Decoder::new(),
        told: VecDeque::new(),
        headers: HeaderWriter::default(),
        out: Vec::new(),
    };
    (client, far)
}

impl Client {
    async fn send(&mut self) {
        let out = std::mem::take(&mut self.out);
        self.io.write_all(&out).await.unwrap();
    }

    pub(super) async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        put_open(stream, headers, false, &mut self.headers, &mut self.out);
        self.send().await;
    }

    pub(super) async fn channel(&mut self, stream: u32, kind: &str) {
        self.open(stream, &[("streamtype", kind)]).await;
    }

    /// Opens half of a forwarded connection.
    pub(super) async fn half(&mut self, stream: u32, kind: &str, port: &str, request: &str) {
        self.open(stream, &[("streamtype", kind), ("port", port), ("requestid", request)]).await;
    }

    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8], last: bool) {
        put_data(stream, bytes, last, &mut self.out);
        self.send().await;
    }

    pub(super) async fn reset(&mut self, stream: u32) {
        put_reset(stream, ResetReason::Cancel, &mut self.out);
        self.send().await;
    }

    pub(super) async fn ping(&mut self, id: u32) {
        put_ping(id, &mut self.out);
        self.send().await;
    }

    pub(super) async fn settings(&mut self, settings: &[(u32, u32)]) {
        put_settings(settings, &mut self.out);
        self.send().await;
    }

    pub(super) async fn window(&mut self, stream: u32, more: u32) {
        put_window(stream, more, &mut self.out);
        self.send().await;
    }

    pub(super) async fn go_away(&mut self) {
        put_go_away(0, CloseReason::Done, &mut self.out);
        self.send().await;
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.send().await;
    }

    /// Sends this again and again, as long as anybody takes it and `most` bytes at the most; how much was taken.
    pub(super) async fn flood(&mut self, bytes: &[u8], most: usize) -> usize {
        let mut taken = 0;
        while taken < most {
            let rest = &bytes[taken % bytes.len()..];
            match tokio::time::timeout(Duration::from_secs(1), self.io.write(rest)).await {
                Ok(count) => taken += count.unwrap(),
                Err(_) => break,
            }
        }
        taken
    }

    /// The next thing that the server says; `None` at its end.
    pub(super) async fn next(&mut self) -> Option<Told> {
        let mut buffer = [0; 4096];
        while self.told.is_empty() {
            let count = self.io.read(&mut buffer).await.unwrap();
            if count == 0 {
                return None;
            }
            let mut input = &buffer[..count];
            while let Some(event) = self.decoder.next(&mut input).unwrap() {
                self.told.push_back(match event {
                    super::super::frame::Event::Data { stream, bytes, last } => {
                        Told::Data { stream, bytes: bytes.to_vec(), last }
                    }
                    other => Told::Other(format!("{other:?}")),
                });
            }
        }
        self.told.pop_front()
    }

    /// Asserts that the server says this next.
    pub(super) async fn hears(&mut self, text: &str) {
        assert_eq!(self.next().await, Some(Told::Other(text.to_owned())));
    }

    /// What comes for a stream until it ends.
    pub(super) async fn hears_all_of(&mut self, stream: u32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Some(Told::Data { stream: id, bytes, last }) if id == stream => {
                    all.extend_from_slice(&bytes);
                    if last {
                        return all;
                    }
                }
                other => panic!("{other:?} after {} bytes", all.len()),
            }
        }
    }

    /// Asserts that the server says this on a stream and then ends it.
    pub(super) async fn hears_end_of(&mut self, stream: u32, bytes: &[u8]) {
        assert_eq!(self.hears_all_of(stream).await, bytes);
    }
}
