//! Content that is not what it is announced as. Each refusal names what is wrong and leaves nothing.

use image::{EntryError, ImageError, UnpackError};
use serde_json::json;
use types::{ErrorKind, Kind};

use crate::builder::{Built, Family, LayerBuilder, digest, gzip};
use crate::fixture::{Fixture, cause, text};
use crate::server::{Content, Reply, Server};

/// Serves `image`, but other bytes for one of its blobs.
async fn with_blob(image: Built, position: usize, change: impl Fn(&mut Vec<u8>)) -> Server {
    let content = Content::new(&image);
    let name = digest(&image.blobs[position]);
    let mut blob = image.blobs[position].clone();
    change(&mut blob);
    Server::start(move |request| {
        if request.path().ends_with(&name) { Reply::ok(blob.clone()) } else { content.reply(request) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_blobs_and_manifests_are_refused() {
    let fixture = Fixture::new().await;
    let layers =
        [LayerBuilder::new().file("good", "x").build(), LayerBuilder::new().file("bad", "y").build()];
    let built = || Built::new(Family::Oci, &layers);
    let flip = |blob: &mut Vec<u8>| {
        let middle = blob.len() / 2;
        blob[middle] ^= 4;
    };
    for (what, position) in [("config", 0), ("first layer", 1), ("second layer", 2)] {
        let server = with_blob(built(), position, flip).await;
        let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
        assert!(matches!(cause(&error), ImageError::Corrupt { .. }), "{what}: {}", text(&error));
        assert!(text(&error).contains(&digest(&built().blobs[position])), "{what}: {}", text(&error));
    }
    let server = with_blob(built(), 1, |blob| blob.push(0)).await;
    let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
    assert!(matches!(cause(&error), ImageError::Corrupt { .. }), "too long: {}", text(&error));

    let server = Server::of_image(built()).await;
    let other = format!("{}/app@sha256:{}", server.address, "ab".repeat(32));
    assert!(matches!(cause(&fixture.pull_fails(&other).await), ImageError::Corrupt { .. }));
    fixture.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_its_diff_id_is_refused() {
    let fixture = Fixture::new().await;
    let promised = LayerBuilder::new().file("promised", "x").build();
    let delivered = LayerBuilder::new().file("delivered", "x").build();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(&promised)]}});
    let built = Built::of_blobs(Family::Oci, config.to_string().into_bytes(), vec![gzip(&delivered)]);
    let server = Server::of_image(built).await;
    let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
    assert!(matches!(cause(&error), ImageError::Corrupt { .. }), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_layers_are_refused_by_layer_and_entry() {
    let fixture = Fixture::new().await;
    let hostile = LayerBuilder::new().file("harmless", "x").file("../../escape", "x").build();
    let built = Built::new(Family::Docker, &[LayerBuilder::new().file("a", "b").build(), hostile]);
    let layer = digest(&built.layers()[1]);
    let server = Server::of_image(built).await;
    let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
    let ImageError::Unpack { source: UnpackError::Entry { entry, problem }, .. } = cause(&error) else {
        panic!("{}", text(&error));
    };
    assert!(entry == "../../escape" && matches!(problem, EntryError::Outside));
    assert!(text(&error).contains(&layer) && error.kind() == ErrorKind::InvalidArgument);
    fixture.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_clearly() {
    let fixture = Fixture::new().await;
    let counts =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}});
    let layer = gzip(&LayerBuilder::new().file("a", "b").build());
    let uneven = Built::of_blobs(Family::Oci, counts.to_string().into_bytes(), vec![layer]);
    let no_config = Built::of_blobs(Family::Oci, b"[]".to_vec(), vec![]);
    for (image, word) in [(uneven, "1 layers and 0 diff ids"), (no_config, "config cannot be read")] {
        let server = Server::of_image(image).await;
        let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
        assert!(matches!(cause(&error), ImageError::Unsupported { .. }), "{}", text(&error));
        assert!(text(&error).contains(word), "{}", text(&error));
    }
    for (manifest, word) in [
        (json!({"schemaVersion": 1, "fsLayers": []}).to_string(), "schema 1"),
        ("<html>".to_owned(), "manifest is not valid"),
    ] {
        let server = Server::start(move |_| Reply::ok(manifest.clone())).await;
        let error = fixture.pull_fails(&format!("{}/app:1", server.address)).await;
        assert!(text(&error).contains(word), "{}", text(&error));
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    for reference in ["", "host/UPPER", "a b", "host/a:b:c"] {
        let error = fixture.pull_fails(reference).await;
        assert!(matches!(error, ImageError::Reference { .. }), "{reference}");
    }
}
