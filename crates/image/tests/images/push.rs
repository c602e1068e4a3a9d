//! Pushes to Debian's registry, and what comes back from there.

use image::{Auth, ImageError, Images, PushRequest};
use types::{ErrorKind, Kind};

use crate::builder::{Built, Family, LayerBuilder, digest, noise};
use crate::fixture::{Fixture, text, tree};
use crate::registry::{Access, Registry};

/// A small layer, and one that does not go up in one piece.
fn layers() -> Vec<Vec<u8>> {
    let small = LayerBuilder::new().directory("etc/").file("etc/name", "pushed").build();
    let large = LayerBuilder::new().entry("noise", |_| {}, &noise(9 << 20)).file("etc/.wh.name", "").build();
    vec![small, large]
}

async fn push(images: &Images, image: &str, target: &str) -> Result<types::Digest, ImageError> {
    images.push(PushRequest { image: image.to_owned(), target: target.to_owned(), auth: None }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn within_a_registry_blobs_are_taken_over_and_the_digest_stays() {
    let fixture = Fixture::new().await;
    let registry = Registry::start(fixture.directory.path(), "plain", &Access::default());
    let built = Built::new(Family::Docker, &layers());
    registry.push("team/app", "1", &built);
    let (source, target) =
        (format!("{}/team/app:1", registry.address), format!("{}/other/app:2", registry.address));
    let id = fixture.pull(&source).await.unwrap();
    let blobs = |fixture: &Fixture| {
        let all = tree(&fixture.directory.path().join("storage/docker/registry/v2/blobs"));
        all.into_iter().filter(|path| path.is_file()).count()
    };
    let before = blobs(&fixture);
    let pushed = push(&fixture.images, &source, &target).await.unwrap();
    assert_eq!(pushed.to_string(), digest(&built.manifest));
    assert_eq!(blobs(&fixture), before, "no blob of its own");
    let other = Fixture::new().await;
    assert_eq!(other.pull(&target).await.unwrap(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn elsewhere_the_image_is_the_same_under_a_manifest_of_its_own() {
    let (fixture, elsewhere) = (Fixture::new().await, tempfile::tempdir().unwrap());
    let registry = Registry::start(fixture.directory.path(), "plain", &Access::default());
    let second = Registry::start(elsewhere.path(), "second", &Access::default());
    registry.push("team/app", "1", &Built::new(Family::Oci, &layers()));
    let source = format!("{}/team/app:1", registry.address);
    let id = fixture.pull(&source).await.unwrap();
    let target = format!("{}/moved:1", second.address);
    let pushed = push(&fixture.images, &source, &target).await.unwrap();
    let again = push(&fixture.images, id.0.as_str(), &target).await.unwrap();
    assert_eq!(pushed, again, "always the same bytes");
    let left = tree(&fixture.store().join("ingest"));
    assert!(left.is_empty(), "{left:?}");
    let other = Fixture::new().await;
    assert_eq!(other.pull(&target).await.unwrap(), id);
    let diff_ids = |fixture: &Fixture| {
        let image = fixture.images.resolve(id.0.as_str()).unwrap();
        image.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(diff_ids(&fixture), diff_ids(&other));
    assert_eq!(other.images.resolve(&target).unwrap().manifest, pushed);
    // From here the blobs are the registry's own, and so is the manifest.
    let back = push(&other.images, &target, &format!("{}/again:1", second.address)).await.unwrap();
    assert_eq!(back, pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_password_gets_it_or_nothing_is_pushed() {
    let (fixture, elsewhere) = (Fixture::new().await, tempfile::tempdir().unwrap());
    let registry = Registry::start(fixture.directory.path(), "plain", &Access::default());
    registry.push("app", "1", &Built::small("secret"));
    let source = format!("{}/app:1", registry.address);
    fixture.pull(&source).await.unwrap();
    let second = Registry::start(elsewhere.path(), "second", &Access { password: true, ..Access::default() });
    let target = format!("{}/app:1", second.address);
    let with = async |password: &str| {
        let auth = Auth { username: "user".into(), password: password.into(), ..Auth::default() };
        let request = PushRequest { image: source.clone(), target: target.clone(), auth: Some(auth) };
        fixture.images.push(request).await
    };
    assert_eq!(push(&fixture.images, &source, &target).await.unwrap_err().kind(), ErrorKind::Unauthenticated);
    assert_eq!(with("wrong").await.unwrap_err().kind(), ErrorKind::Unauthenticated);
    with("secret").await.unwrap_or_else(|error| panic!("{}", text(&error)));
    assert!(matches!(push(&fixture.images, "nothing", &target).await, Err(ImageError::Unknown(_))));
    drop(second);
    let gone = push(&fixture.images, &source, &target).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Unavailable, "{}", text(&gone));
}
