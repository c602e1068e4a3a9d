//! Requests to a real endpoint, of which the daemon behind is only starting.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::client::{Client, ClientError};
use super::server::CONNECTIONS;
use super::status::Phase;
use super::*;
use crate::config::table::Table as _;
use crate::config::{ConfigFile, Format, Level, Log};
use crate::logging::Logging;
use crate::metrics::Metrics;

/// For what is to come.
const LIMIT: Duration = Duration::from_secs(60);

struct Endpoint {
    workers: Runtime,
    dir: TempDir,
    admin: Admin,
    stop: CancellationToken,
    logging: Logging,
}

/// Of a daemon with one worker.
fn open() -> Endpoint {
    let workers = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let logging = Logging::silent(Log { level: Level::Info, format: Format::Text });
    let board = board(&workers, &logging, &stop);
    let any = Some("127.0.0.1:0".parse().unwrap());
    let admin = Admin::open(dir.path(), any, board).unwrap();
    Endpoint { workers, dir, admin, stop, logging }
}

fn board(workers: &Runtime, logging: &Logging, stop: &CancellationToken) -> Arc<Board> {
    let _inside = workers.enter();
    Arc::new(Board::new(ConfigFile::defaults(), logging.clone(), Metrics::new(), stop.clone()))
}

impl Endpoint {
    fn socket(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join(SOCKET)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.admin.address().unwrap()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// The answer to a whole request, as it comes.
    fn answer(&self, request: impl AsRef<[u8]>) -> String {
        read(self.socket(), request.as_ref())
    }

    fn get(&self, page: &str) -> String {
        self.answer(format!("GET {page} HTTP/1.1\r\nhost: x\r\n\r\n"))
    }

    fn put(&self, page: &str, body: &str) -> String {
        let length = body.len();
        self.answer(format!("PUT {page} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"))
    }

    fn client(&self) -> Client {
        Client::of(self.dir.path())
    }
}

fn read(mut stream: impl std::io::Read + std::io::Write, request: &[u8]) -> String {
    // Who is cut off in the middle may have got an answer all the same.
    let sent = stream.write_all(request);
    let mut answer = Vec::new();
    let heard = stream.read_to_end(&mut answer);
    assert!(sent.is_ok() || heard.is_ok() || answer.is_empty());
    String::from_utf8_lossy(&answer).into_owned()
}

fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[test]
fn a_daemon_that_only_starts_can_be_asked() {
    let endpoint = open();
    let (json, status) = endpoint.client().status(true).unwrap();
    assert_eq!((status.version, status.server.phase), (status::VERSION, Phase::Starting));
    assert_eq!(status.server.pid, std::process::id());
    assert!(status.server.latency.is_some());
    assert!(status.build.rustc.starts_with("rustc "), "{:?}", status.build);
    assert_eq!(status.config["state"], "/run/crimson");
    assert_eq!(status.problems(Duration::from_secs(30)), ["the server is starting"]);
    assert_eq!(serde_json::to_string(&status).unwrap(), json.trim_end(), "nothing is lost on the way");
    endpoint.stop.cancel();
    assert_eq!(endpoint.client().status(false).unwrap().1.server.phase, Phase::Stopping);
}

#[test]
fn pages_and_methods_are_those_that_are_documented() {
    let endpoint = open();
    for (page, expected, found) in [
        ("/healthz", "200", "ok: starting"),
        ("/metrics", "200", "crimson_build_info"),
        ("/status", "200", "\"version\":1"),
        ("/log-level", "200", "\"level\":\"info\""),
        ("/", "404", "no such page"),
        ("/status/../log-level", "404", "no such page"),
        ("*", "404", "no such page"),
    ] {
        let answer = endpoint.get(page);
        assert!(code(&answer) == expected && answer.contains(found), "{page}: {answer}");
        assert!(answer.contains("cache-control: no-store"), "{answer}");
    }
    let answer = endpoint.put("/status", "x");
    assert!(code(&answer) == "405" && answer.contains("allow: GET, HEAD"), "{answer}");
    let head = endpoint.answer("HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(code(&head) == "200" && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn over_the_network_there_are_metrics_and_nothing_else() {
    let endpoint = open();
    let ask = |line: &str| read(endpoint.tcp(), format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    let metrics = ask("GET /metrics");
    assert!(code(&metrics) == "200" && metrics.contains("# EOF"), "{metrics}");
    assert!(metrics.contains(crate::metrics::CONTENT_TYPE), "{metrics}");
    assert_eq!(code(&ask("GET /healthz")), "200");
    for line in ["GET /status", "GET /log-level", "PUT /log-level", "GET /"] {
        assert_eq!(code(&ask(line)), "404", "{line}");
    }
    assert_eq!(code(&ask("DELETE /metrics")), "405");
}

#[test]
fn the_level_is_set_and_what_is_none_is_refused() {
    let endpoint = open();
    let client = endpoint.client();
    let level = client.set_log_level("warn,crimson::pod=debug").unwrap();
    assert_eq!((level.level.as_str(), level.configured.as_str()), ("warn,crimson::pod=debug", "info"));
    assert_eq!(endpoint.logging.level(), level);
    assert_eq!(client.log_level().unwrap(), level);
    assert!(level.report().contains("until the next reload or restart; the configuration says info"));
    match client.set_log_level("loud") {
        Err(ClientError::Refused(text)) => assert!(text.starts_with("\"loud\" is not a level"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(code(&endpoint.put("/log-level", &"x".repeat(5000))), "413");
    let no_text = endpoint.answer(b"PUT /log-level HTTP/1.1\r\ncontent-length: 2\r\n\r\n\xff\xfe");
    assert_eq!(code(&no_text), "400", "{no_text}");
    let late = endpoint.answer("PUT /log-level HTTP/1.1\r\ncontent-length: 5\r\n\r\nerr");
    assert_eq!(code(&late), "408", "{late}");
    assert_eq!(endpoint.logging.level(), level, "nothing has changed");
}

#[test]
fn junk_is_refused_and_harms_nobody() {
    let endpoint = open();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    let smuggled =
        "PUT /log-level HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nx";
    let junk: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\0\n\n\n\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
        smuggled.as_bytes(),
    ];
    for bytes in junk {
        let answer = endpoint.answer(bytes);
        assert_ne!(code(&answer), "200", "{answer}");
    }
    // One request for each connection.
    let twice = endpoint.answer("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2));
    assert_eq!(twice.matches("200 OK").count(), 1, "{twice}");
    assert_eq!(endpoint.logging.level().level, "info");
    assert_eq!(code(&endpoint.get("/healthz")), "200");
}

/// More clients than there are places for, and none of them says anything.
#[test]
fn silent_clients_are_cut_off_and_the_next_is_served() {
    let endpoint = open();
    let silent: Vec<UnixStream> = (0..CONNECTIONS + 4).map(|_| endpoint.socket()).collect();
    let half: Vec<UnixStream> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = endpoint.socket();
            stream.write_all(b"GET /healthz HT").unwrap();
            stream
        })
        .collect();
    assert_eq!(code(&endpoint.get("/healthz")), "200");
    for mut stream in silent.into_iter().chain(half) {
        // An end, or a reset where something came that nobody read; no time out.
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
}

#[test]
fn a_daemon_whose_workers_are_stuck_can_be_asked() {
    let endpoint = open();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (holding, began) = std::sync::mpsc::channel::<()>();
    endpoint.workers.spawn(async move {
        holding.send(()).unwrap();
        held.recv().unwrap_err();
    });
    began.recv().unwrap();
    let answer = endpoint.get("/healthz");
    assert!(code(&answer) == "503" && answer.contains("workers are stuck"), "{answer}");
    let status = endpoint.client().status(false).unwrap().1;
    assert_eq!(status.server.latency, None);
    assert!(status.problems(Duration::from_secs(30))[0].contains("workers are stuck"));
    drop(release);
    let deadline = Instant::now() + LIMIT;
    while code(&endpoint.get("/healthz")) != "200" {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn the_socket_is_roots_replaced_when_stale_and_gone_in_the_end() {
    let endpoint = open();
    let path = endpoint.dir.path().join(SOCKET);
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let address = endpoint.admin.address().unwrap();
    let Endpoint { workers, dir, admin, logging, stop } = endpoint;
    drop(admin);
    assert!(!path.try_exists().unwrap());
    // What another test is just starting may listen for us for another moment.
    let begun = Instant::now();
    while TcpStream::connect(address).is_ok() {
        assert!(begun.elapsed() < LIMIT, "somebody listens");
    }
    assert!(matches!(Client::of(dir.path()).log_level(), Err(ClientError::NoDaemon(_))));

    // As after kill -9. Bound only: one that has listened could be held as above.
    tokio::net::UnixSocket::new_stream().unwrap().bind(&path).unwrap();
    assert!(matches!(Client::of(dir.path()).log_level(), Err(ClientError::NoDaemon(_))));
    let board = || board(&workers, &logging, &stop);
    let again = Admin::open(dir.path(), None, board()).unwrap();
    Client::of(dir.path()).log_level().unwrap();
    // One that is served is left alone.
    let error = Admin::open(dir.path(), None, board()).unwrap_err();
    assert!(matches!(error, AdminError::Socket(ListenError::SocketInUse(_))), "{error:?}");
    Client::of(dir.path()).log_level().unwrap();
    drop(again);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Admin::open(dir.path(), taken.local_addr().ok(), board()).unwrap_err();
    assert!(matches!(error, AdminError::Address(..)), "{error:?}");
    assert!(!path.try_exists().unwrap(), "what was made by then is taken back");
}
