//! Mirrors: their order, their capabilities, and what they are not told.

use image::Auth;
use types::{ErrorKind, Kind};

use crate::builder::Built;
use crate::fixture::{Fixture, text};
use crate::server::{Content, Reply, Server, dead_address};

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_instead_of_the_registry_and_sees_no_credentials() {
    let fixture = Fixture::new().await;
    let mirror = Server::of_image(Built::small("x")).await;
    let hosts = format!("server = \"https://127.0.0.1:1\"\n[host.\"http://{}\"]\n", mirror.address);
    fixture.write_hosts("registry.example", &hosts);
    let auth = Auth { username: "user".into(), password: "secret".into(), ..Auth::default() };
    fixture.pull_as("registry.example/app:1", Some(auth)).await.unwrap();
    assert!(fixture.images.resolve("registry.example/app:1").is_some());
    for request in mirror.requests() {
        assert_eq!(request.header("authorization"), None);
        assert!(request.target.ends_with("?ns=registry.example"), "{}", request.target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_asks_for_credentials_gets_none() {
    let fixture = Fixture::new().await;
    let thief = Server::start(|_| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"give\"")).await;
    let registry = Server::of_image(Built::small("x")).await;
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", registry.address, thief.address);
    fixture.write_hosts("registry.example", &hosts);
    let auth = Auth { username: "user".into(), password: "secret".into(), ..Auth::default() };
    fixture.pull_as("registry.example/app:1", Some(auth)).await.unwrap();
    assert!(!thief.requests().is_empty());
    assert!(thief.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_and_lacking_mirrors_are_passed_over() {
    let fixture = Fixture::new().await;
    let lacking = Server::start(|_| Reply::new(404)).await;
    let registry = Server::of_image(Built::small("x")).await;
    let (dead, _held) = dead_address();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{dead}\"]\n[host.\"http://{}\"]\n",
        registry.address, lacking.address
    );
    fixture.write_hosts("registry.example", &hosts);
    fixture.pull("registry.example/app:1").await.unwrap();
    assert!(lacking.count("/manifests/") == 1 && registry.count("/manifests/") == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_for_blobs_only_is_not_asked_for_tags() {
    let fixture = Fixture::new().await;
    let built = Built::small("x");
    let content = Content::new(&built);
    let mirror = Server::of_image(built).await;
    let registry = Server::start(move |request| {
        if request.path().contains("/blobs/") { Reply::new(500) } else { content.reply(request) }
    })
    .await;
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        registry.address, mirror.address
    );
    fixture.write_hosts("registry.example", &hosts);
    fixture.pull("registry.example/app:1").await.unwrap();
    assert_eq!((mirror.count("/manifests/"), registry.count("/blobs/")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registrys_own_refusal_is_reported_and_not_that_another_is_dead() {
    let fixture = Fixture::new().await;
    for (status, kind) in
        [(401, ErrorKind::Unauthenticated), (403, ErrorKind::PermissionDenied), (404, ErrorKind::NotFound)]
    {
        let registry = Server::start(move |_| Reply::new(status)).await;
        let (dead, _held) = dead_address();
        // The name resolves to the listed host; the server behind it is another one, and gone.
        let hosts = format!("server = \"http://{dead}\"\n[host.\"http://{}\"]\n", registry.address);
        fixture.write_hosts(&registry.address, &hosts);
        let error = fixture.pull_fails(&format!("{}/app:1", registry.address)).await;
        assert_eq!(error.kind(), kind, "{}", text(&error));

        let hosts = format!("server = \"http://{}\"\n[host.\"http://{dead}\"]\n", registry.address);
        fixture.write_hosts("registry.example", &hosts);
        let error = fixture.pull_fails("registry.example/app:1").await;
        assert_eq!(error.kind(), kind, "{}", text(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_listed_as_server_and_as_host_is_asked_once() {
    let fixture = Fixture::new().await;
    let registry = Server::start(|_| Reply::new(404)).await;
    let hosts = format!("server = \"http://{0}\"\n[host.\"http://{0}\"]\n", registry.address);
    fixture.write_hosts("registry.example", &hosts);
    let error = fixture.pull_fails("registry.example/app:1").await;
    assert_eq!((error.kind(), registry.requests().len()), (ErrorKind::NotFound, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_the_configuration_are_named() {
    let fixture = Fixture::new().await;
    fixture.write_hosts("registry.example", "server = 1");
    let error = fixture.pull_fails("registry.example/app:1").await;
    assert!(text(&error).contains("registry.example/hosts.toml"), "{}", text(&error));
    fixture.write_hosts("registry.example", "ca = \"missing.pem\"");
    let error = fixture.pull_fails("registry.example/app:1").await;
    assert!(text(&error).contains("missing.pem"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_headers_go_to_their_server_only() {
    let fixture = Fixture::new().await;
    let built = Built::small("x");
    let (content, from_storage) = (Content::new(&built), Content::new(&built));
    let storage = Server::start(move |request| from_storage.reply(request)).await;
    let blobs = storage.address.clone();
    let mirror = Server::start(move |request| {
        if request.path().contains("/blobs/") {
            return Reply::new(307).header("Location", format!("http://{blobs}{}", request.path()));
        }
        content.reply(request)
    })
    .await;
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{0}\"]\n[host.\"http://{0}\".header]\n{1}\n{2}\n",
        mirror.address, "X-Key = \"hunter2\"", "User-Agent = [\"own\"]"
    );
    fixture.write_hosts("registry.example", &hosts);
    fixture.pull("registry.example/app:1").await.unwrap();
    for request in mirror.requests() {
        assert_eq!((request.header("x-key"), request.header("user-agent")), (Some("hunter2"), Some("own")));
    }
    assert!(storage.requests().len() >= 2);
    for request in storage.requests() {
        assert_eq!(request.header("x-key"), None);
        assert_ne!(request.header("user-agent"), Some("own"));
    }
}
