//! Proxies by environment, against a tiny proxy. The environment is a process's, so each pull has a process of its own.

use std::process::Output;
use std::sync::{Arc, Mutex};

use image::{Images, PullRequest};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::builder::Built;
use crate::fixture::{Fixture, config, text};
use crate::server::{Content, Server};
use crate::tls::Files;

/// No name server knows it: only a proxy can reach it.
const REGISTRY: &str = "registry.invalid";
const PASSWORD: &str = "Basic dXNlcjpwQHNz";

/// Sends everything to one server, whatever name it is asked for.
struct Proxy {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (log, server) = (Arc::clone(&heads), server.address.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (log, server) = (Arc::clone(&log), server.clone());
                tokio::spawn(async move { drop(forward(client, &server, &log).await) });
            }
        });
        Self { address, heads, task }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, server: &str, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(client.read_u8().await?));
    }
    log.lock().unwrap().push(head.clone());
    let is_password = |line: &&str| line.to_ascii_lowercase().starts_with("proxy-authorization:");
    if !head.lines().any(|line| is_password(&line) && line.ends_with(PASSWORD)) {
        let answer = b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(answer).await;
    }
    let mut server = TcpStream::connect(server).await?;
    if head.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
    } else {
        let kept: Vec<&str> = head.lines().filter(|line| !is_password(line)).collect();
        server.write_all(format!("{}\r\n", kept.join("\r\n")).as_bytes()).await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

fn acceptor(files: &Files) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(&files.certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

const DIRECTORY: &str = "CRIMSON_TEST_PROXIED_PULL_IN";

/// Not a test by itself: the pull of the others, in an environment that they choose.
#[tokio::test(flavor = "multi_thread")]
async fn pull_in_an_environment() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let images = Images::open(config(directory.as_ref())).await.unwrap();
    let request = PullRequest { reference: format!("{REGISTRY}/app:1"), ..PullRequest::default() };
    images.pull(request).await.unwrap_or_else(|error| panic!("{}", text(&error)));
}

/// Whether the pull succeeded, and what it said.
async fn pull_with(fixture: &Fixture, variables: &[(&str, String)]) -> (bool, String) {
    let mut command = command_for(fixture);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

fn command_for(fixture: &Fixture) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_ascii_lowercase());
    }
    command.args(["--exact", "proxy::pull_in_an_environment"]).env(DIRECTORY, fixture.directory.path());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn https_goes_through_a_tunnel_that_alone_learns_the_proxys_password() {
    let fixture = Fixture::new().await;
    let own = Files::self_signed(fixture.directory.path(), "own", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(REGISTRY.try_into().unwrap())];
    });
    let content = Content::new(&Built::small("x"));
    let server = Server::start_with(Some(acceptor(&own)), move |request| content.reply(request)).await;
    let proxy = Proxy::start(&server).await;
    fixture.write_hosts(REGISTRY, &format!("ca = \"{}\"", own.certificate.display()));
    let url = format!("http://user:p%40ss@{}", proxy.address);
    let (good, output) = pull_with(&fixture, &[("HTTPS_PROXY", url)]).await;
    assert!(good, "{output}");
    for head in proxy.heads() {
        assert!(head.starts_with(&format!("CONNECT {REGISTRY}:443 HTTP/1.1\r\n")), "{head}");
        assert!(head.contains(PASSWORD), "{head}");
    }
    assert!(server.requests().len() >= 3 && !proxy.heads().is_empty());
    assert!(server.requests().iter().all(|request| request.header("proxy-authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_requests_go_to_the_proxy_whole() {
    let fixture = Fixture::new().await;
    let server = Server::of_image(Built::small("x")).await;
    let proxy = Proxy::start(&server).await;
    fixture.write_hosts(REGISTRY, &format!("server = \"http://{REGISTRY}\""));
    let url = format!("user:p%40ss@{}", proxy.address);
    let (good, output) = pull_with(&fixture, &[("http_proxy", url)]).await;
    assert!(good, "{output}");
    let first = proxy.heads().remove(0);
    assert!(first.starts_with(&format!("GET http://{REGISTRY}/v2/app/manifests/1 HTTP/1.1\r\n")), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_not_used_for_exceptions_nor_around_its_refusal() {
    let fixture = Fixture::new().await;
    let server = Server::of_image(Built::small("x")).await;
    let proxy = Proxy::start(&server).await;
    let url = |password: &str| format!("http://user:{password}@{}", proxy.address);
    let variables = [("HTTPS_PROXY", url("p%40ss")), ("NO_PROXY", "invalid".to_owned())];
    let (good, output) = pull_with(&fixture, &variables).await;
    assert!(!good && proxy.heads().is_empty(), "{output}");

    let (good, output) = pull_with(&fixture, &[("HTTPS_PROXY", url("hunter2"))]).await;
    assert!(!good && output.contains("RegistryUnavailable: ") && output.contains("407"), "{output}");
    assert!(!output.contains("hunter2") && server.requests().is_empty(), "{output}");

    let socks = format!("socks5://user:hunter2@{}", proxy.address);
    let (good, output) = pull_with(&fixture, &[("HTTPS_PROXY", socks)]).await;
    assert!(!good && output.contains("HTTPS_PROXY") && !output.contains("hunter2"), "{output}");
}
