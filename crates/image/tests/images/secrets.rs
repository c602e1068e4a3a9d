//! Who gets to see which secret: every server that a pull meets writes down all it is told.

use std::sync::Arc;

use image::{Auth, ImageError};

use crate::builder::Built;
use crate::fixture::{Fixture, cause, text};
use crate::server::{Content, Reply, Server};

/// What must not be seen: plain and as Basic authentication has it.
const SECRETS: [&str; 4] = ["hunter2", "dXNlcjpodW50ZXIy", "gr4nted", "user"];

/// The servers of one pull. All but the registry and its token server are strangers.
struct Cast {
    mirror: Server,
    tokens: Server,
    registry: Server,
    storage: Server,
    farther: Server,
}

impl Cast {
    async fn new() -> Self {
        let content = Arc::new(Content::new(&Built::small("x")));
        let last = Arc::clone(&content);
        let farther = Server::start(move |request| last.reply(request)).await;
        let next = farther.address.clone();
        let storage = Server::start(move |request| {
            Reply::new(302).header("Location", format!("http://{next}{}", request.target))
        })
        .await;
        let mirror =
            Server::start(|_| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"give\"")).await;
        let tokens = Server::start(|_| Reply::ok("{\"token\": \"gr4nted\"}")).await;
        let (realm, blobs) = (tokens.address.clone(), storage.address.clone());
        let registry = Server::start(move |request| {
            let is_known =
                matches!(request.header("authorization"), Some("Bearer gr4nted" | "Bearer hunter2"));
            if !is_known {
                return Reply::new(401).header(
                    "WWW-Authenticate",
                    format!("Bearer realm=\"http://{realm}/token\",service=\"s\""),
                );
            }
            if request.path().contains("/blobs/") {
                return Reply::new(307).header("Location", format!("http://{blobs}{}", request.target));
            }
            content.reply(request)
        })
        .await;
        Self { mirror, tokens, registry, storage, farther }
    }
}

fn knows(server: &Server, secret: &str) -> bool {
    server.requests().iter().any(|request| {
        let headers = request.headers.values().any(|value| value.contains(secret));
        headers || request.target.contains(secret) || request.body.contains(secret)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stranger_sees_a_secret_of_any_kind() {
    let forms = [
        Auth { username: "user".into(), password: "hunter2".into(), ..Auth::default() },
        Auth { auth: "dXNlcjpodW50ZXIy".into(), ..Auth::default() },
        Auth { username: "user".into(), identity_token: "hunter2".into(), ..Auth::default() },
        Auth { registry_token: "hunter2".into(), ..Auth::default() },
    ];
    for auth in forms {
        let (fixture, cast) = (Fixture::new().await, Cast::new().await);
        let hosts = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            cast.registry.address, cast.mirror.address
        );
        fixture.write_hosts("registry.example", &hosts);
        let is_token = !auth.registry_token.is_empty();
        fixture.pull_as("registry.example/app:1", Some(auth)).await.unwrap();
        for stranger in [&cast.mirror, &cast.storage, &cast.farther] {
            assert!(!stranger.requests().is_empty());
            for secret in SECRETS {
                assert!(!knows(stranger, secret), "{secret} at a stranger");
            }
        }
        assert!(!knows(&cast.tokens, "gr4nted"), "the token server is not told its own tokens");
        assert!(is_token || !knows(&cast.registry, "hunter2"), "the password is for the token server");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_without_tls_on_another_machine_gets_no_secret() {
    let fixture = Fixture::new().await;
    let registry = Server::start(|_| {
        Reply::new(401).header("WWW-Authenticate", "Bearer realm=\"http://tokens.invalid/token\"")
    })
    .await;
    let auth = Auth { username: "user".into(), password: "hunter2".into(), ..Auth::default() };
    let error = fixture.pull_as(&format!("{}/app:1", registry.address), Some(auth)).await.unwrap_err();
    assert!(matches!(cause(&error), ImageError::Protocol { .. }), "{}", text(&error));
    assert!(text(&error).contains("no HTTPS"), "{}", text(&error));
    assert!(!knows(&registry, "hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_another_server_are_not_used() {
    let (fixture, cast) = (Fixture::new().await, Cast::new().await);
    let auth = Auth {
        username: "user".into(),
        password: "hunter2".into(),
        server_address: "https://elsewhere.example".into(),
        ..Auth::default()
    };
    fixture.pull_as(&format!("{}/app:1", cast.registry.address), Some(auth)).await.unwrap();
    for server in [&cast.registry, &cast.tokens, &cast.storage] {
        assert!(!knows(server, "hunter2") && !knows(server, "dXNlcjpodW50ZXIy"));
    }
}
