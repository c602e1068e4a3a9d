use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const BODY: &[u8] = b"0123456789abcdef";

/// A registry that has one answer, and a proxy before it. Gives the proxy's address too.
async fn proxy() -> Result<(Arc<Shared>, String)> {
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let upstream = registry.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = registry.accept().await {
            let mut head = [0; 1024];
            // One read suffices for the short requests of these tests.
            if stream.read(&mut head).await.is_ok() {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BODY.len());
                drop(stream.write_all(&[head.as_bytes(), BODY].concat()).await);
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let (address, shared) = (listener.local_addr()?.to_string(), Arc::<Shared>::default());
    tokio::spawn(exchange::serve(listener, upstream, Arc::clone(&shared)));
    Ok((shared, address))
}

async fn get(address: &str, path: &str) -> Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nauthorization: Basic eA==\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let body = answer.split_off(end);
    Ok((String::from_utf8(answer)?, body))
}

#[tokio::test]
async fn without_trouble_all_passes_and_is_remembered() -> Result {
    let (shared, address) = proxy().await?;
    let (head, body) = get(&address, "/v2/x/blobs/sha256:1").await?;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Connection: close"), "{head}");
    assert_eq!(body, BODY);
    let requests = shared.requests.lock().unwrap();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    assert!(request.fetches_blob() && request.host == address, "{request:?}");
    assert_eq!(request.authorization.as_deref(), Some("Basic eA=="));
    assert_eq!((request.status, request.sent), (200, 16));
    Ok(())
}

#[tokio::test]
async fn a_cut_ends_the_answer_where_it_is_told_to() -> Result {
    let (shared, address) = proxy().await?;
    let cut = shared.rules.put("/blobs/", 1, Trouble::Cut { after: 5 });
    assert_eq!(get(&address, "/v2/x/manifests/1").await?.1, BODY, "another path");
    assert_eq!(get(&address, "/v2/x/blobs/1").await?.1, b"01234");
    assert_eq!(get(&address, "/v2/x/blobs/1").await?.1, BODY, "once is once");
    drop(cut);
    let _too_late = shared.rules.put("/blobs/", 1, Trouble::Cut { after: 500 });
    assert_eq!(get(&address, "/v2/x/blobs/1").await?.1, BODY);
    Ok(())
}

#[tokio::test]
async fn a_hold_lasts_until_it_is_lifted() -> Result {
    let (shared, address) = proxy().await?;
    let hold = shared.rules.put("/blobs/", usize::MAX, Trouble::Hold { after: 3 });
    let asked = tokio::spawn(async move { get(&address, "/v2/x/blobs/1").await });
    while shared.requests.lock().unwrap().first().is_none_or(|it| it.sent < 3) {
        tokio::task::yield_now().await;
    }
    assert!(!asked.is_finished());
    hold.lift();
    assert_eq!(asked.await??.1, BODY);
    Ok(())
}

#[tokio::test]
async fn troubles_meet_in_one_answer_in_their_order() -> Result {
    let (shared, address) = proxy().await?;
    let _cut = shared.rules.put("/blobs/", 1, Trouble::Cut { after: 9 });
    let _stall = shared.rules.put("/blobs/", 1, Trouble::Stall { after: 4, time: Duration::from_millis(1) });
    assert_eq!(get(&address, "/v2/x/blobs/1").await?.1, b"012345678");
    assert_eq!(get(&address, "/v2/x/blobs/1").await?.1, BODY, "both have struck");
    Ok(())
}

#[tokio::test]
async fn some_troubles_take_the_place_of_the_answer() -> Result {
    let (shared, address) = proxy().await?;
    let busy = shared.rules.put("/v2/", 1, Trouble::Status { code: 429, retry_after: Some(3) });
    let (head, body) = get(&address, "/v2/x").await?;
    assert!(head.starts_with("HTTP/1.1 429") && head.contains("Retry-After: 3\r\n"), "{head}");
    assert!(body.is_empty());
    drop(busy);
    let redirect = shared.rules.put("/v2/", 1, Trouble::Redirect { to: "other:1".into() });
    let (head, _) = get(&address, "/v2/x?y").await?;
    assert!(
        head.starts_with("HTTP/1.1 307") && head.contains("Location: http://other:1/v2/x?y\r\n"),
        "{head}"
    );
    drop(redirect);
    let _refuse = shared.rules.put("/v2/", 1, Trouble::Refuse);
    assert_eq!(get(&address, "/v2/x").await?.0, "");
    let statuses: Vec<u16> = shared.requests.lock().unwrap().iter().map(|it| it.status).collect();
    assert_eq!(statuses, [429, 307, 0]);
    Ok(())
}
