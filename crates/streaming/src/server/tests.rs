//! The whole server over loopback, with an independent WebSocket client.

mod refusals;
mod sessions;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fake::{self, Far};

/// A server under way.
struct Running {
    server: Server,
    address: SocketAddr,
    processes: mpsc::Receiver<Far>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Running {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = Config::new(address.to_string());
        change(&mut config);
        let (backend, processes) = fake::backend();
        let server = Server::new(config, backend).unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.serve(listener, stop).await }
        });
        Self { server, address, processes, stop, serving }
    }

    fn exec(&self, names: &str) -> String {
        self.server.exec_url(fake::exec("run", names)).unwrap()
    }

    /// A session that runs, and its process.
    async fn session(&mut self, names: &str, protocol: &str) -> (Client, Far) {
        let client = connect(&self.exec(names), protocol).await.unwrap();
        (client, self.processes.recv().await.unwrap())
    }
}

type Client = WebSocketStream<TcpStream>;

async fn connect(url: &str, protocol: &str) -> Result<Client, tungstenite::Error> {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    upgrade(TcpStream::connect(address).await.unwrap(), url, protocol).await
}

async fn upgrade<S>(stream: S, url: &str, protocol: &str) -> Result<WebSocketStream<S>, tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("ws{}", url.strip_prefix("http").unwrap()).into_client_request().unwrap();
    if !protocol.is_empty() {
        let protocol = HeaderValue::from_str(protocol).unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol);
    }
    Ok(client_async(request, stream).await?.0)
}

/// All that comes until the server closes: the bytes of each channel, and how it closed.
async fn rest<S>(client: &mut WebSocketStream<S>, protocol: &str) -> (BTreeMap<u8, Vec<u8>>, CloseCode)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    loop {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(data) => {
                assert!(!protocol.contains("base64"));
                channels.entry(data[0]).or_default().extend_from_slice(&data[1..]);
            }
            Message::Text(text) => {
                assert!(protocol.contains("base64"));
                let bytes = text.as_bytes();
                let data = base64::Engine::decode(&STANDARD, &bytes[1..]).unwrap();
                channels.entry(bytes[0] - b'0').or_default().extend_from_slice(&data);
            }
            Message::Close(frame) => return (channels, frame.unwrap().code),
            other => panic!("{other:?}"),
        }
    }
}

/// Sends a request as it stands and takes the answer as it comes.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

fn path(url: &str) -> &str {
    url.strip_prefix("http://").unwrap().split_once('/').unwrap().1
}
