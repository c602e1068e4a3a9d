//! Several callers and one image.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use image::{ImageError, ImageId, Images, PullRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use types::{ErrorKind, Kind};

use crate::builder::{Built, Family, LayerBuilder};
use crate::fixture::{Fixture, cause, config};
use crate::server::{Content, Server};

/// A server that answers requests for blobs only when the test says so.
async fn held_back(image: &Built) -> (Server, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let (content, waiting) = (Content::new(image), Arc::clone(&gate));
    let server = Server::start(move |request| {
        if request.path().contains("/blobs/") {
            let permit =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(waiting.acquire()));
            permit.unwrap().forget();
        }
        content.reply(request)
    })
    .await;
    (server, gate)
}

fn request(server: &Server, tag: &str) -> PullRequest {
    PullRequest { reference: format!("{}/app:{tag}", server.address), ..PullRequest::default() }
}

/// Waits until the server was asked for a blob.
async fn blob_is_asked_for(server: &Server) {
    while server.count("/blobs/") == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn ten_callers_make_one_download() {
    let fixture = Fixture::new().await;
    let (server, gate) = held_back(&Built::small("x")).await;
    let pulls: Vec<_> = (0..10)
        .map(|_| {
            let (images, request) = (fixture.images.clone(), request(&server, "1"));
            tokio::spawn(async move { images.pull(request).await })
        })
        .collect();
    blob_is_asked_for(&server).await;
    gate.add_permits(100);
    let mut ids = Vec::new();
    for pull in pulls {
        ids.push(pull.await.unwrap().unwrap());
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(server.count("/blobs/"), 2, "config and layer, once each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn images_that_share_a_layer_download_it_once() {
    let fixture = Fixture::new().await;
    let shared = LayerBuilder::new().file("shared", "x").build();
    let top = |name: &str| LayerBuilder::new().file(name, "y").build();
    let one = Built::new(Family::Oci, &[shared.clone(), top("one")]);
    let two = Built::new(Family::Oci, &[shared, top("two")]);
    let (first, second) = (Server::of_image(one).await, Server::of_image(two).await);
    let pull = |server: &Server| {
        let (images, request) = (fixture.images.clone(), request(server, "1"));
        tokio::spawn(async move { images.pull(request).await })
    };
    let (a, b) = (pull(&first), pull(&second));
    let (a, b) = (a.await.unwrap().unwrap(), b.await.unwrap().unwrap());
    assert_ne!(a, b);
    assert_eq!(first.count("/blobs/") + second.count("/blobs/"), 2 + 3, "two configs, three layers");
    fixture.images.remove(a.0.as_str()).await.unwrap();
    let rootfs = fixture.images.lease("c", &b).await.unwrap();
    assert!(rootfs.layers.iter().all(|layer| layer.is_dir()), "the other image stays whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_layer_in_another_compression_is_the_same_layer() {
    let fixture = Fixture::new().await;
    let layer = LayerBuilder::new().file("shared", "x").build();
    let gzip = Built::new(Family::Oci, std::slice::from_ref(&layer));
    let mut config: serde_json::Value = serde_json::from_slice(&gzip.blobs[0]).unwrap();
    config["author"] = serde_json::json!("another image");
    let zstd = zstd::encode_all(layer.as_slice(), 1).unwrap();
    let zstd = Built::of_blobs(Family::Oci, config.to_string().into_bytes(), vec![zstd]);
    let (first, second) = (Server::of_image(gzip).await, Server::of_image(zstd).await);
    let a = fixture.images.pull(request(&first, "1")).await.unwrap();
    let b = fixture.images.pull(request(&second, "1")).await.unwrap();
    assert_ne!(a, b);
    assert_eq!((first.count("/blobs/"), second.count("/blobs/")), (2, 1), "the second needs its config only");
}

fn start_pull(fixture: &Fixture, server: &Server) -> JoinHandle<Result<ImageId, ImageError>> {
    let (images, request) = (fixture.images.clone(), request(server, "1"));
    tokio::spawn(async move { images.pull(request).await })
}

async fn leave(caller: JoinHandle<Result<ImageId, ImageError>>) {
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
}

/// Waits until the store is as it was when it was made, and counts as many bytes.
async fn nothing_remains(fixture: &Fixture, used: u64) {
    let begun = Instant::now();
    while !fixture.is_empty() || fixture.images.usage().used_bytes != used {
        assert!(begun.elapsed() < Duration::from_secs(60), "something stays");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_pull_goes_on_while_one_caller_waits() {
    let fixture = Fixture::new().await;
    let (server, gate) = held_back(&Built::small("x")).await;
    let first = start_pull(&fixture, &server);
    blob_is_asked_for(&server).await;
    let second = start_pull(&fixture, &server);
    let mut third = Box::pin(fixture.images.pull(request(&server, "1")));
    assert!(std::future::poll_fn(|context| Poll::Ready(third.as_mut().poll(context))).await.is_pending());
    leave(first).await;
    leave(second).await;
    gate.add_permits(100);
    third.await.unwrap();
    assert_eq!(server.count("/blobs/"), 2, "all three shared one download");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_pull_that_nobody_waits_for_stops_and_leaves_nothing() {
    let fixture = Fixture::new().await;
    let layer = |name: &str| LayerBuilder::new().file(name, "x").build();
    let (server, gate) = held_back(&Built::new(Family::Oci, &[layer("one"), layer("two")])).await;
    let used = fixture.images.usage().used_bytes;
    let caller = start_pull(&fixture, &server);
    // The config and one of the layers.
    gate.add_permits(2);
    while std::fs::read_dir(fixture.store().join("layers")).unwrap().count() == 0 {
        tokio::task::yield_now().await;
    }
    leave(caller).await;
    nothing_remains(&fixture, used).await;
    gate.add_permits(100);
    fixture.images.pull(request(&server, "1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_pull_asked_for_again_after_it_was_given_up_begins_anew() {
    let fixture = Fixture::new().await;
    let (server, gate) = held_back(&Built::small("x")).await;
    let caller = start_pull(&fixture, &server);
    blob_is_asked_for(&server).await;
    leave(caller).await;
    let again = start_pull(&fixture, &server);
    gate.add_permits(100);
    let id = again.await.unwrap().unwrap();
    assert_eq!(fixture.images.list()[0].id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn removing_a_name_stops_its_pull() {
    let fixture = Fixture::new().await;
    let (server, gate) = held_back(&Built::small("x")).await;
    let caller = start_pull(&fixture, &server);
    blob_is_asked_for(&server).await;
    fixture.images.remove(&format!("{}/app:other", server.address)).await.unwrap();
    assert!(!caller.is_finished());
    fixture.images.remove(&format!("{}/app:1", server.address)).await.unwrap();
    let error = caller.await.unwrap().unwrap_err();
    assert!(matches!(cause(&error), ImageError::Removed { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    fixture.assert_empty();
    gate.add_permits(100);
    fixture.images.pull(request(&server, "1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn shutting_down_ends_a_pull_and_a_new_store_finds_no_trace() {
    let fixture = Fixture::new().await;
    let (server, gate) = held_back(&Built::small("x")).await;
    let (images, first) = (fixture.images.clone(), request(&server, "1"));
    let caller = tokio::spawn(async move { images.pull(first).await });
    blob_is_asked_for(&server).await;
    fixture.images.shutdown().await;
    assert!(caller.await.unwrap().is_err());
    assert!(fixture.images.pull(request(&server, "1")).await.is_err());
    gate.add_permits(100);
    let reopened = Images::open(config(fixture.directory.path())).await.unwrap();
    assert!(reopened.list().is_empty());
    fixture.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_removals_all_succeed() {
    let fixture = Fixture::new().await;
    let server = Server::of_image(Built::small("x")).await;
    for tag in ["1", "2"] {
        fixture.images.pull(request(&server, tag)).await.unwrap();
    }
    let removals: Vec<_> = (0..8)
        .map(|n| {
            let (images, name) = (fixture.images.clone(), format!("{}/app:{}", server.address, n % 2 + 1));
            tokio::spawn(async move { images.remove(&name).await })
        })
        .collect();
    for removal in removals {
        removal.await.unwrap().unwrap();
    }
    fixture.assert_empty();
}
