//! The token dance, and who gets to see which secret.

use std::sync::Arc;

use image::{Auth, ImageError};

use crate::builder::Built;
use crate::fixture::{Fixture, cause, text};
use crate::server::{Content, Reply, Request, Server};

/// A registry that wants a bearer token, its token server, and the storage it redirects blobs to.
struct Trio {
    registry: Server,
    tokens: Server,
    storage: Server,
}

async fn start(image: Built, grant: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Trio {
    let content = Arc::new(Content::new(&image));
    let from_storage = Arc::clone(&content);
    let storage = Server::start(move |request| from_storage.reply(request)).await;
    let tokens =
        Server::start(
            move |request| {
                if grant(request) { Reply::ok("{\"token\": \"t0ken\"}") } else { Reply::new(401) }
            },
        )
        .await;
    let (realm, blobs) = (tokens.address.clone(), storage.address.clone());
    let registry = Server::start(move |request| {
        if request.header("authorization") != Some("Bearer t0ken") {
            let challenge = format!(
                "Bearer realm=\"http://{realm}/token\",service=\"reg\",scope=\"repository:app:pull\""
            );
            return Reply::new(401).header("WWW-Authenticate", challenge);
        }
        if request.path().contains("/blobs/") {
            return Reply::new(307).header("Location", format!("http://{blobs}{}", request.path()));
        }
        content.reply(request)
    })
    .await;
    Trio { registry, tokens, storage }
}

fn password() -> Auth {
    Auth { username: "user".into(), password: "secret".into(), ..Auth::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_goes_to_the_token_server_and_the_token_to_the_registry_only() {
    let fixture = Fixture::new().await;
    let built = Built::small("x");
    let id = built.id();
    let trio =
        start(built, |request| request.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=")).await;
    let reference = format!("{}/app:1", trio.registry.address);
    assert_eq!(fixture.pull_as(&reference, Some(password())).await.unwrap().to_string(), id);

    let [question] = trio.tokens.requests().try_into().unwrap();
    assert_eq!(question.target, "/token?service=reg&scope=repository%3Aapp%3Apull&account=user");
    assert!(trio.storage.requests().len() >= 2, "blobs come from the storage");
    for request in trio.storage.requests() {
        assert_eq!(request.header("authorization"), None, "a redirect's target sees no credentials");
    }
    for request in trio.registry.requests() {
        assert!(matches!(request.header("authorization"), None | Some("Bearer t0ken")), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_or_with_wrong_credentials_the_pull_is_unauthenticated() {
    let fixture = Fixture::new().await;
    let trio = start(Built::small("x"), |_| false).await;
    let reference = format!("{}/app:1", trio.registry.address);
    for auth in [None, Some(password())] {
        let error = fixture.pull_as(&reference, auth).await.unwrap_err();
        assert!(matches!(cause(&error), ImageError::Unauthenticated { .. }), "{}", text(&error));
        assert!(!text(&error).contains("secret"));
    }
    fixture.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_by_post() {
    let fixture = Fixture::new().await;
    let trio = start(Built::small("x"), |request| request.method == "POST").await;
    let reference = format!("{}/app:1", trio.registry.address);
    let auth = Auth { identity_token: "refresh me".into(), ..Auth::default() };
    fixture.pull_as(&reference, Some(auth)).await.unwrap();
    let [question] = trio.tokens.requests().try_into().unwrap();
    assert_eq!((question.method.as_str(), question.target.as_str()), ("POST", "/token"));
    assert!(question.body.contains("grant_type=refresh_token"), "{}", question.body);
    assert!(question.body.contains("refresh_token=refresh%20me"), "{}", question.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_token_needs_no_token_server() {
    let fixture = Fixture::new().await;
    let trio = start(Built::small("x"), |_| false).await;
    let reference = format!("{}/app:1", trio.registry.address);
    let auth = |token: &str| Some(Auth { registry_token: token.into(), ..Auth::default() });
    fixture.pull_as(&reference, auth("t0ken")).await.unwrap();
    let error =
        fixture.pull_as(&format!("{}/app:2", trio.registry.address), auth("stale")).await.unwrap_err();
    assert!(matches!(cause(&error), ImageError::Unauthenticated { .. }));
    assert!(trio.tokens.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_given_to_those_only_whom_the_registry_lets_in() {
    let fixture = Fixture::new().await;
    let trio =
        start(Built::small("x"), |request| request.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ="))
            .await;
    let reference = format!("{}/app:1", trio.registry.address);
    fixture.pull_as(&reference, Some(password())).await.unwrap();
    for name in [reference, format!("{}/app:2", trio.registry.address)] {
        let error = fixture.pull(&name).await.unwrap_err();
        assert!(matches!(cause(&error), ImageError::Unauthenticated { .. }), "{name}: {}", text(&error));
    }
    assert_eq!(fixture.images.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_serves_later_pulls_with_the_same_credentials() {
    let fixture = Fixture::new().await;
    let trio = start(Built::small("x"), |_| true).await;
    let pull = |tag: u32, auth| {
        let reference = format!("{}/app:{tag}", trio.registry.address);
        let images = fixture.images.clone();
        async move {
            images.pull(image::PullRequest { reference, auth, platform: None }).await.unwrap();
        }
    };
    pull(1, Some(password())).await;
    pull(2, Some(password())).await;
    assert_eq!(trio.tokens.requests().len(), 1);
    pull(3, None).await;
    pull(4, Some(Auth { password: "other".into(), ..password() })).await;
    assert_eq!(trio.tokens.requests().len(), 3, "each has its own");
    pull(5, None).await;
    assert_eq!(trio.tokens.requests().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_or_expired_is_not_used_again() {
    let fixture = Fixture::new().await;
    let current = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (granted, valid) = (Arc::clone(&current), Arc::clone(&current));
    let tokens = Server::start(move |_| {
        let number = granted.load(std::sync::atomic::Ordering::Relaxed);
        let life = if number == 1 { 0 } else { 3600 };
        Reply::ok(format!("{{\"access_token\": \"t{number}\", \"expires_in\": {life}}}"))
    })
    .await;
    let (realm, content) = (tokens.address.clone(), Content::new(&Built::small("x")));
    let registry = Server::start(move |request| {
        let wanted = format!("Bearer t{}", valid.load(std::sync::atomic::Ordering::Relaxed));
        if request.header("authorization") == Some(&wanted) {
            return content.reply(request);
        }
        Reply::new(401).header("WWW-Authenticate", format!("Bearer realm=\"http://{realm}/token\""))
    })
    .await;
    // The first token is revoked, the second expires at once, the third is used twice.
    for (tag, number) in [(1, 0), (2, 1), (3, 2), (4, 2)] {
        current.store(number, std::sync::atomic::Ordering::Relaxed);
        fixture.pull(&format!("{}/app:{tag}", registry.address)).await.unwrap();
    }
    assert_eq!(tokens.requests().len(), 3);
    let with_token = |token: &str| {
        registry.requests().iter().filter(|request| request.header("authorization") == Some(token)).count()
    };
    assert_eq!(with_token("Bearer t1"), 1, "an expired token is not tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end() {
    let fixture = Fixture::new().await;
    let server = Server::start(|request| Reply::new(302).header("Location", request.target.clone())).await;
    let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
    assert!(matches!(cause(&error), ImageError::Protocol { .. }), "{}", text(&error));
    assert!(server.requests().len() < 20);
}
