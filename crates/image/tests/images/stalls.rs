//! Servers that say nothing, and how long a pull puts up with it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use image::ImageError;

use crate::builder::{Built, Family, LayerBuilder, noise};
use crate::fixture::{Fixture, cause, text};
use crate::server::{Content, Reply, Server};

/// More than a busy machine may take to pass on what a server has sent.
const PROGRESS: Duration = Duration::from_secs(5);

fn large() -> Built {
    Built::new(Family::Oci, &[LayerBuilder::new().entry("big", |_| {}, &noise(1_000_000)).build()])
}

async fn impatient() -> Fixture {
    Fixture::with(|config| config.progress_timeout = PROGRESS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_stalls_is_cut_and_goes_on() {
    let (fixture, built) = (impatient().await, large());
    let size: usize = built.blobs.iter().map(Vec::len).sum();
    let content = Content::new(&built);
    let server = Server::start(move |request| Reply {
        stall: Some((400_000, Duration::MAX)),
        ..content.reply(request)
    })
    .await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
    assert!(server.sent() <= size + size / 50, "{} bytes for {size}", server.sent());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_stall_is_waited_out() {
    let (fixture, content) = (Fixture::new().await, Content::new(&large()));
    let server = Server::start(move |request| Reply {
        stall: Some((500_000, Duration::from_millis(300))),
        ..content.reply(request)
    })
    .await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
    assert_eq!(server.count("/blobs/"), 2, "config and layer, once each");
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_with_and_without_progress_do_not_add_up() {
    let (fixture, content) = (Fixture::new().await, Content::new(&large()));
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        if !request.path().contains("/blobs/") {
            return reply;
        }
        let is_idle = asked.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        Reply { cut: Some(if is_idle { 0 } else { 150_000 }), ..reply }
    })
    .await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
    assert!(server.count("/blobs/") > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_in_the_middle_is_waited_out() {
    let (fixture, content) = (Fixture::new().await, Content::new(&large()));
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        match (reply.body.len() > 100_000).then(|| asked.fetch_add(1, Ordering::Relaxed)) {
            Some(0) => Reply { cut: Some(300_000), ..reply },
            Some(1..=5) => Reply::new(503),
            _ => reply,
        }
    })
    .await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_next_to_nothing_is_given_up() {
    let (fixture, content) = (Fixture::new().await, Content::new(&large()));
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        let is_layer = reply.body.len() > 500_000;
        Reply { cut: is_layer.then_some(1), ..reply }
    })
    .await;
    let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
    assert!(matches!(cause(&error), ImageError::Unavailable { .. }), "{}", text(&error));
    assert!(server.count("/blobs/") < 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_does_not_answer_is_asked_once() {
    let fixture = impatient().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = Server::of_image(large()).await;
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        registry.address,
        silent.local_addr().unwrap()
    );
    fixture.write_hosts("registry.example", &hosts);
    fixture.pull("registry.example/app:1").await.unwrap();
    let mut connections = 0;
    while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(50), silent.accept()).await {
        connections += 1;
    }
    assert_eq!(connections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_began_and_stalls_at_the_registry_goes_on_with() {
    let (fixture, built) = (impatient().await, large());
    let size: usize = built.blobs.iter().map(Vec::len).sum();
    let content = Content::new(&built);
    let mirror = Server::start(move |request| {
        let reply = content.reply(request);
        let is_rest = request.offset() > 0;
        let stall = if is_rest { 0 } else { 700_000 };
        Reply { stall: Some((stall, Duration::MAX)).filter(|_| reply.body.len() > stall), ..reply }
    })
    .await;
    let registry = Server::of_image(built).await;
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", registry.address, mirror.address);
    fixture.write_hosts("registry.example", &hosts);
    fixture.pull("registry.example/app:1").await.unwrap();
    let [rest] = registry.requests().try_into().unwrap();
    assert_eq!(rest.offset(), 700_000);
    assert!(mirror.sent() + registry.sent() <= size + size / 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_to_be_left_alone_for_long_has_failed() {
    let fixture = Fixture::new().await;
    let server = Server::start(|_| Reply::new(429).header("Retry-After", "3600")).await;
    let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
    assert!(text(&error).starts_with("RegistryUnavailable: "), "{}", text(&error));
    assert!(text(&error).contains("try again in 3600 s"), "{}", text(&error));
    assert_eq!(server.requests().len(), 1);
}
