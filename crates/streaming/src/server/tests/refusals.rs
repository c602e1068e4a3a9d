//! Requests that become no session.

use super::*;

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

async fn request(running: &Running, method: &str, path: &str, headers: &str) -> String {
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{headers}\r\n");
    ask(running.address, &request).await
}

#[tokio::test]
async fn only_a_fresh_token_of_the_right_kind_is_found() {
    let mut running = Running::new().await;
    let url = running.exec("o");
    let client = connect(&url, "").await.unwrap();
    let wrong = running.exec("o").replace("/exec/", "/attach/");
    for path in [path(&url), path(&wrong), "exec/AAAAAAAA", "exec/", "exec", "", "other/x", "exec/a/b"] {
        let answer = request(&running, "GET", path, WEBSOCKET).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    // The session of the first use goes on.
    assert!(!running.processes.recv().await.unwrap().released.is_cancelled());
    drop(client);
}

#[tokio::test]
async fn other_methods_are_refused_and_use_no_token() {
    let running = Running::new().await;
    let url = running.exec("o");
    let answer = request(&running, "PUT", path(&url), WEBSOCKET).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 405 ") && answer.contains("allow: get, post"), "{answer}");
    assert!(connect(&url, "").await.is_ok());
}

#[tokio::test]
async fn a_request_without_a_usable_upgrade_is_told_why() {
    let running = Running::new().await;
    let bad_key = WEBSOCKET.replace("dGhlIHNhbXBsZSBub25jZQ==", "x");
    let unknown = format!("{WEBSOCKET}Sec-WebSocket-Protocol: v9.channel.k8s.io\r\n");
    let unknown_spdy = format!("{SPDY}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n");
    let cases = [
        ("GET", "", "400", "SPDY/3.1 nor WebSocket"),
        ("POST", "Connection: close\r\nUpgrade: SPDY/3.1\r\n", "400", "SPDY/3.1 nor WebSocket"),
        ("POST", WEBSOCKET, "400", "GET"),
        ("GET", &bad_key, "400", "Sec-WebSocket-Key"),
        ("GET", &unknown, "403", "v9.channel.k8s.io"),
        ("POST", SPDY, "400", "X-Stream-Protocol-Version"),
        ("POST", &unknown_spdy, "403", "x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
    ];
    for (method, headers, status, reason) in cases {
        let answer = request(&running, method, path(&running.exec("o")), headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{headers}: {answer}");
        assert!(answer.contains(reason), "{headers}: {answer}");
    }
    let forward = running.server.port_forward_url(fake::sandbox(), vec![]).unwrap();
    let answer = request(&running, "GET", path(&forward), WEBSOCKET).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("names no port"), "{answer}");
}

#[tokio::test]
async fn a_spdy_client_is_upgraded_by_get_and_post() {
    let running = Running::new().await;
    for method in ["GET", "POST"] {
        let url = running.exec("o");
        let mut connection = TcpStream::connect(running.address).await.unwrap();
        let headers = format!("{SPDY}X-Stream-Protocol-Version: v3.channel.k8s.io, v4.channel.k8s.io\r\n");
        let request =
            format!("{method} /{} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{headers}\r\n", path(&url));
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(connection.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("upgrade: SPDY/3.1\r\n"), "{answer}");
        assert!(answer.contains("x-stream-protocol-version: v3.channel.k8s.io\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn too_many_sessions_are_asked_to_come_later() {
    let mut running = Running::with(|config| config.sessions = 1).await;
    let (client, far) = running.session("o", "").await;
    let waiting = running.exec("o");
    let answer = request(&running, "GET", path(&waiting), WEBSOCKET).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 503 ") && answer.contains("retry-after: "), "{answer}");
    drop(client);
    far.released.cancelled().await;
    // The place is free once the connection is closed; the token is still good.
    while connect(&waiting, "").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_get_no_url() {
    let (backend, _) = fake::backend();
    let server = Server::new(Config::new("127.0.0.1:1"), backend).unwrap();
    for names in ["", "t", "oet"] {
        assert!(matches!(server.exec_url(fake::exec("run", names)), Err(UrlError::Invalid(_))), "{names}");
        assert!(matches!(server.attach_url(fake::attach(names)), Err(UrlError::Invalid(_))), "{names}");
    }
    let mut empty = fake::exec("run", "o");
    empty.command.clear();
    assert!(matches!(server.exec_url(empty), Err(UrlError::Invalid(_))));
    assert!(matches!(server.port_forward_url(fake::sandbox(), vec![80, 0]), Err(UrlError::Invalid(_))));
    for _ in 0..1000 {
        server.exec_url(fake::exec("run", "o")).unwrap();
    }
    let error = server.exec_url(fake::exec("run", "o")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
}

#[tokio::test]
async fn who_says_nothing_or_never_finishes_is_disconnected() {
    let running = Running::new().await;
    let mut connections = Vec::new();
    for beginning in ["", "GET /exec/x HTTP/1.1\r\nHost: "] {
        let mut connection = TcpStream::connect(running.address).await.unwrap();
        connection.write_all(beginning.as_bytes()).await.unwrap();
        connections.push(connection);
    }
    for mut connection in connections {
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 101"));
    }
    let flood = format!("GET /exec/x HTTP/1.1\r\nX: {}", "x".repeat(64 * 1024));
    let mut connection = TcpStream::connect(running.address).await.unwrap();
    drop(connection.write_all(flood.as_bytes()).await);
    let mut answer = Vec::new();
    drop(connection.read_to_end(&mut answer).await);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
}
