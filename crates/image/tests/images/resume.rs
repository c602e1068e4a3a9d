//! Pulls that go on where a process that was killed, or a store that was shut down, had come to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image::{Images, PullRequest};

use crate::builder::{Built, Family, LayerBuilder, digest, noise};
use crate::fixture::{Fixture, config, tree};
use crate::server::{Content, Reply, Server};

const DIRECTORY: &str = "CRIMSON_TEST_PULL_INTO";
const REFERENCE: &str = "CRIMSON_TEST_PULL";
/// Where the server stops sending a large blob.
const HELD_AT: usize = 600_000;

/// What [`Process`] runs; without its environment nothing is tested here.
#[tokio::test(flavor = "multi_thread")]
async fn pull_in_a_process_of_its_own() {
    let (Ok(directory), Ok(reference)) = (std::env::var(DIRECTORY), std::env::var(REFERENCE)) else { return };
    let images = Images::open(config(Path::new(&directory))).await.unwrap();
    images.pull(PullRequest { reference, ..PullRequest::default() }).await.unwrap();
}

/// A pull in a process of its own, which can be killed.
struct Process(Child);

impl Process {
    fn pull(directory: &Path, reference: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["resume::pull_in_a_process_of_its_own", "--exact"]);
        command.env(DIRECTORY, directory).env(REFERENCE, reference).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A server that, until it is told otherwise, stops in the middle of large blobs.
async fn holding(image: &Built) -> (Server, Arc<AtomicBool>) {
    let (content, is_held) = (Content::new(image), Arc::new(AtomicBool::new(true)));
    let held = Arc::clone(&is_held);
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        let stalls = held.load(Ordering::Relaxed) && reply.body.len() > HELD_AT;
        Reply { stall: stalls.then_some((HELD_AT, Duration::MAX)), ..reply }
    })
    .await;
    (server, is_held)
}

/// One small layer and two large ones.
fn image() -> Built {
    let large = |name: &str, from: usize| {
        LayerBuilder::new().entry(name, |_| {}, &noise(2_000_000)[from..from + 1_000_000]).build()
    };
    let small = LayerBuilder::new().file("small", "x").build();
    Built::new(Family::Oci, &[small, large("one", 0), large("two", 1000)])
}

/// Files of interrupted pulls, without the directory of this boot.
fn parts(directory: &Path) -> Vec<PathBuf> {
    let all = tree(&directory.join("images/parts"));
    all.into_iter().filter(|path| path.is_file()).collect()
}

/// Waits until both large layers have come as far as they can, and the small one is done.
async fn comes_to_a_halt(directory: &Path) {
    let is_there = |path: &PathBuf| {
        let is_mark = path.extension().is_some();
        is_mark || std::fs::metadata(path).is_ok_and(|file| file.len() == HELD_AT as u64)
    };
    while parts(directory).iter().filter(|path| is_there(path)).count() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A pull of `built` that was killed half-way, and the directory it worked in.
async fn killed_pull(built: &Built) -> (tempfile::TempDir, Server, String) {
    let directory = tempfile::tempdir().unwrap();
    let (server, is_held) = holding(built).await;
    let reference = format!("{}/app:1", server.address);
    let process = Process::pull(directory.path(), &reference);
    comes_to_a_halt(directory.path()).await;
    process.kill();
    is_held.store(false, Ordering::Relaxed);
    (directory, server, reference)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pull_goes_on_where_it_was() {
    let built = image();
    let size: usize = built.blobs.iter().map(Vec::len).sum();
    let (directory, server, reference) = killed_pull(&built).await;

    let images = Images::open(config(directory.path())).await.unwrap();
    assert!(images.list().is_empty());
    assert!(images.usage().used_bytes > 2 * HELD_AT as u64, "what is kept counts as used");
    let id = images.pull(PullRequest { reference, ..PullRequest::default() }).await.unwrap();
    assert_eq!(id.to_string(), built.id());
    assert!(server.sent() <= size + size / 50, "{} bytes were sent for {size}", server.sent());
    assert_eq!(server.count(&digest(&built.layers()[0])), 1, "a finished layer is not fetched again");
    assert_eq!(parts(directory.path()), Vec::<PathBuf>::new());

    images.remove(&id.to_string()).await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("images/layers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_is_thrown_away_and_the_layer_fetched_once_more() {
    let built = image();
    let (directory, server, reference) = killed_pull(&built).await;
    for part in parts(directory.path()) {
        let mut bytes = std::fs::read(&part).unwrap();
        // The part of the small layer may be there still.
        if let Some(byte) = bytes.get_mut(1000) {
            *byte ^= 1;
            std::fs::write(&part, bytes).unwrap();
        }
    }
    let images = Images::open(config(directory.path())).await.unwrap();
    let id = images.pull(PullRequest { reference, ..PullRequest::default() }).await.unwrap();
    assert_eq!(id.to_string(), built.id());
    for layer in &built.layers()[1..] {
        assert!(server.count(&digest(layer)) <= 3, "killed, gone on, and anew");
    }
    assert_eq!(parts(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_after_a_restart_leaves_nothing() {
    let built = image();
    let (directory, server, _) = killed_pull(&built).await;
    let images = Images::open(config(directory.path())).await.unwrap();
    let content = Content::new(&built);
    let last = digest(&built.layers()[2]);
    let other =
        Server::start(
            move |request| {
                if request.path().ends_with(&last) { Reply::new(404) } else { content.reply(request) }
            },
        )
        .await;
    drop(server);
    let reference = format!("{}/app:1", other.address);
    images.pull(PullRequest { reference, ..PullRequest::default() }).await.unwrap_err();
    assert_eq!(parts(directory.path()), Vec::<PathBuf>::new());
    assert_eq!(std::fs::read_dir(directory.path().join("images/layers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_a_shutdown_ended_goes_on_as_well() {
    let fixture = Fixture::new().await;
    let built = image();
    let size: usize = built.blobs.iter().map(Vec::len).sum();
    let (server, is_held) = holding(&built).await;
    let (images, reference) = (fixture.images.clone(), format!("{}/app:1", server.address));
    let request = PullRequest { reference, ..PullRequest::default() };
    let caller = tokio::spawn({
        let request = request.clone();
        async move { images.pull(request).await }
    });
    comes_to_a_halt(fixture.directory.path()).await;
    fixture.images.shutdown().await;
    caller.await.unwrap().unwrap_err();
    is_held.store(false, Ordering::Relaxed);
    let reopened = Images::open(config(fixture.directory.path())).await.unwrap();
    reopened.pull(request).await.unwrap();
    assert!(server.sent() <= size + size / 50, "{} bytes were sent for {size}", server.sent());
}
