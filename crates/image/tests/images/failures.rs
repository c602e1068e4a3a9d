//! Servers that fail, connections that break, disks that fill.

use std::sync::atomic::{AtomicUsize, Ordering};

use image::{ImageError, Images};
use types::{ErrorKind, Kind};

use crate::builder::{Built, Family, LayerBuilder, noise};
use crate::fixture::{Fixture, cause, config, text};
use crate::server::{Content, Reply, Server, dead_address};

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_be_reached_is_unavailable() {
    let fixture = Fixture::new().await;
    let (address, _held) = dead_address();
    let error = fixture.pull_fails(&format!("{address}/app:1")).await;
    assert!(text(&error).starts_with("RegistryUnavailable: "), "{}", text(&error));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again() {
    let fixture = Fixture::new().await;
    let content = Content::new(&Built::small("x"));
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::new(429).header("Retry-After", "0"),
        1 => Reply::new(503),
        _ => content.reply(request),
    })
    .await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();

    let broken = Server::start(|_| Reply::new(500).header("Retry-After", "0")).await;
    let error = fixture.pull_fails(&format!("{}/app:1", broken.address)).await;
    assert!(text(&error).starts_with("RegistryUnavailable: "), "{}", text(&error));
    assert_eq!(broken.requests().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_was_cut() {
    let fixture = Fixture::new().await;
    let layer = LayerBuilder::new().entry("big", |_| {}, &noise(1_000_000)).build();
    let built = Built::new(Family::Oci, &[layer]);
    let size: usize = built.blobs.iter().map(Vec::len).sum();
    let content = Content::new(&built);
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        if request.path().contains("/blobs/") { Reply { cut: Some(100_000), ..reply } } else { reply }
    })
    .await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
    assert!(server.count("/blobs/") >= 10);
    assert!(server.sent() < size + size / 20 + 10_000, "{} bytes for {size}", server.sent());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_read_from_the_start_again() {
    let fixture = Fixture::new().await;
    let layer = LayerBuilder::new().entry("big", |_| {}, &noise(300_000)).build();
    let built = Built::new(Family::Oci, &[layer]);
    let content = Content::new(&built);
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let plain = crate::server::Request { headers: std::collections::HashMap::new(), ..request.clone() };
        let reply = content.reply(&plain);
        let first = reply.body.len() > 100_000 && asked.fetch_add(1, Ordering::Relaxed) == 0;
        Reply { cut: first.then_some(100_000), ..reply }
    })
    .await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_never_gets_on_is_given_up() {
    let fixture = Fixture::new().await;
    let content = Content::new(&Built::small("x"));
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        if request.path().contains("/blobs/") { Reply { cut: Some(0), ..reply } } else { reply }
    })
    .await;
    let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
    assert!(matches!(cause(&error), ImageError::Unavailable { .. }), "{}", text(&error));
}

/// A file system of one mebibyte, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        sys::mount::tmpfs(directory.path(), 1 << 20, 0o700).unwrap();
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(sys::mount::unmount(self.0.path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported_and_removal_still_works() {
    let disk = SmallDisk::new();
    let images = Images::open(config(disk.0.path())).await.unwrap();
    let pull = |server: &Server| {
        let (images, reference) = (images.clone(), format!("{}/app:1", server.address));
        async move { images.pull(image::PullRequest { reference, ..Default::default() }).await }
    };
    let small = Server::of_image(Built::new(
        Family::Oci,
        &[LayerBuilder::new().entry("half", |_| {}, &noise(500_000)).build()],
    ))
    .await;
    let stored = pull(&small).await.unwrap();
    let big = Server::of_image(Built::new(
        Family::Oci,
        &[LayerBuilder::new().entry("big", |_| {}, &noise(3_000_000)).build()],
    ))
    .await;
    let error = pull(&big).await.unwrap_err();
    assert!(matches!(cause(&error), ImageError::DiskFull { .. }), "{}", text(&error));
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    let ingest = disk.0.path().join("images/ingest");
    assert_eq!(std::fs::read_dir(ingest).unwrap().count(), 0, "the unfinished layer is gone");

    let filler = std::fs::write(disk.0.path().join("filler"), noise(1 << 20));
    assert!(filler.is_err() && images.list().len() == 1);
    images.remove(stored.0.as_str()).await.unwrap();
    assert!(images.list().is_empty());
    images.shutdown().await;
}
