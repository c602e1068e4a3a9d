//! What is told of pulls: while they run, and when they have ended in one way or another.

use std::time::{Duration, Instant};

use image::{Auth, ImageError, ImageId, PullFailure, PullFigures, PullProgress, PullStage};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::builder::{Built, Family, LayerBuilder, noise};
use crate::fixture::Fixture;
use crate::server::{Content, Reply, Server};

/// Where the server stops sending the large layer.
const HELD_AT: usize = 300_000;

/// A server that stops in the middle of the large layer until it is told otherwise.
async fn holding() -> (Server, watch::Sender<bool>, Built) {
    let large = LayerBuilder::new().entry("big", |_| {}, &noise(1_000_000)).build();
    let built = Built::new(Family::Oci, &[large, LayerBuilder::new().file("small", "x").build()]);
    let (content, (held, hold)) = (Content::new(&built), watch::channel(true));
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        let is_large = reply.body.len() > HELD_AT;
        Reply { hold: is_large.then(|| (HELD_AT, hold.clone())), ..reply }
    })
    .await;
    (server, held, built)
}

fn pulls(fixture: &Fixture) -> PullFigures {
    fixture.images.figures().pulls
}

fn failures(pulls: &PullFigures) -> Vec<(PullFailure, u64)> {
    pulls.failed.iter().copied().filter(|(_, count)| *count > 0).collect()
}

fn start(fixture: &Fixture, reference: &str) -> JoinHandle<Result<ImageId, ImageError>> {
    let auth = Auth { username: "user".to_owned(), password: "hunter2".to_owned(), ..Auth::default() };
    let (images, reference) = (fixture.images.clone(), reference.to_owned());
    let request = image::PullRequest { reference, auth: Some(auth), platform: None };
    tokio::spawn(async move { images.pull(request).await })
}

/// The figures once they are as wanted.
async fn until(fixture: &Fixture, wanted: impl Fn(&PullFigures) -> bool) -> PullFigures {
    let begun = Instant::now();
    loop {
        let pulls = pulls(fixture);
        if wanted(&pulls) {
            return pulls;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{pulls:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn only(pulls: &PullFigures) -> &PullProgress {
    assert_eq!(pulls.in_progress.len(), 1);
    &pulls.in_progress[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_shown_while_a_slow_registry_holds_it() {
    let fixture = Fixture::new().await;
    let (server, held, built) = holding().await;
    let reference = format!("{}/app:1", server.address);
    let layers: u64 = built.blobs.iter().skip(1).map(|blob| blob.len() as u64).sum();
    assert_eq!(pulls(&fixture).started, 0);
    let callers = [start(&fixture, &reference), start(&fixture, &reference)];
    let stuck = until(&fixture, |pulls| {
        let stuck = |pull: &PullProgress| {
            pull.layers_done == 1 && pull.waiters == 2 && pull.bytes_done >= HELD_AT as u64
        };
        pulls.in_progress.first().is_some_and(stuck)
    })
    .await;
    let pull = only(&stuck);
    assert_eq!((&pull.reference, pull.stage, pull.layers), (&reference, PullStage::Fetching, 2));
    assert_eq!(pull.bytes_expected, layers);
    assert!(pull.bytes_done < layers);
    assert_eq!((stuck.started, stuck.joined, stuck.succeeded), (1, 1, 0));
    assert!(!format!("{stuck:?}").contains("hunter2"));
    let later = until(&fixture, |pulls| only(pulls).age > pull.age).await;
    assert_eq!(only(&later).reference, pull.reference);
    held.send_replace(false);
    for caller in callers {
        caller.await.unwrap().unwrap();
        assert!(pulls(&fixture).in_progress.is_empty(), "it leaves the list before its callers hear of it");
    }
    let done = fixture.images.figures();
    assert_eq!((done.images, done.pulls.succeeded, failures(&done.pulls)), (1, 1, Vec::new()));
    assert_eq!((done.pulls.layers_fetched, done.pulls.layers_shared), (2, 0));
    assert_eq!(done.pulls.durations.total(), 1);
    assert!(done.pulls.unpacked_bytes >= 1_000_000);
    let all: u64 = built.blobs.iter().map(|blob| blob.len() as u64).sum();
    assert!(done.pulls.received_bytes >= all && done.pulls.received_bytes < all + all / 10);
    assert_eq!(done.usage.used_bytes, fixture.images.usage().used_bytes);

    // The same image again, and then another tag of it: nothing is fetched.
    fixture.pull(&format!("{}/app:2", server.address)).await.unwrap();
    let again = pulls(&fixture);
    assert_eq!((again.succeeded, again.layers_fetched, again.layers_shared), (2, 2, 2));
    assert_eq!(again.received_bytes, done.pulls.received_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_its_callers_leave_is_shown_until_it_has_ended() {
    let fixture = Fixture::new().await;
    let (server, _held, _) = holding().await;
    let caller = start(&fixture, &format!("{}/app:1", server.address));
    until(&fixture, |pulls| pulls.in_progress.iter().any(|pull| pull.bytes_done >= HELD_AT as u64)).await;
    caller.abort();
    let ended = until(&fixture, |pulls| pulls.in_progress.is_empty()).await;
    assert_eq!((ended.started, ended.succeeded), (1, 0));
    assert_eq!(failures(&ended), [(PullFailure::Cancelled, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_and_the_end_of_the_store_take_pulls_from_the_list() {
    let fixture = Fixture::new().await;
    let (server, _held, _) = holding().await;
    let reference = format!("{}/app:1", server.address);
    let stuck = |pulls: &PullFigures| pulls.in_progress.iter().any(|pull| pull.bytes_done > 0);
    let caller = start(&fixture, &reference);
    until(&fixture, stuck).await;
    fixture.images.remove(&reference).await.unwrap();
    caller.await.unwrap().unwrap_err();
    assert_eq!(failures(&pulls(&fixture)), [(PullFailure::Cancelled, 1)]);
    let caller = start(&fixture, &reference);
    until(&fixture, stuck).await;
    fixture.images.shutdown().await;
    caller.await.unwrap().unwrap_err();
    let ended = pulls(&fixture);
    assert_eq!((ended.in_progress.len(), failures(&ended)), (0, vec![(PullFailure::Cancelled, 2)]));
    fixture.pull(&reference).await.unwrap_err();
    assert_eq!(pulls(&fixture).started, 2, "what the closed store refuses is no pull");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_their_kind() {
    let fixture = Fixture::new().await;
    let server = Server::start(|request| match request.path() {
        path if path.contains("/denied/") => Reply::new(403),
        path if path.contains("/gone/") => Reply::new(404),
        path if path.contains("/strange/") => Reply::ok("{}"),
        _ => Reply::new(429).header("Retry-After", "3600"),
    })
    .await;
    for name in ["denied", "gone", "strange", "busy", "gone"] {
        fixture.pull(&format!("{}/{name}/app:1", server.address)).await.unwrap_err();
    }
    fixture.pull("not a reference").await.unwrap_err();
    let ended = pulls(&fixture);
    let expected = [
        (PullFailure::Denied, 1),
        (PullFailure::NotFound, 2),
        (PullFailure::Unavailable, 1),
        (PullFailure::Unusable, 1),
    ];
    assert_eq!((ended.started, failures(&ended)), (5, expected.to_vec()));
    assert!(ended.in_progress.is_empty());
}
