//! What registries serve beside the usual image: nested indexes, layers from elsewhere, and what is no image at all.

use std::collections::HashMap;

use image::ImageError;
use serde_json::{Value, json};

use crate::builder::{Built, Family, LayerBuilder, digest, gzip, index};
use crate::fixture::{Fixture, cause, text};
use crate::server::{Reply, Server};

/// Serves documents and blobs by their digest, and the last one under every tag.
async fn serve(documents: Vec<Vec<u8>>) -> Server {
    let last = documents.last().unwrap().clone();
    let by_digest: HashMap<String, Vec<u8>> = documents.into_iter().map(|it| (digest(&it), it)).collect();
    Server::start(move |request| {
        let name = request.path().rsplit('/').next().unwrap_or_default();
        match by_digest.get(name) {
            Some(found) => Reply::ok(found.clone()),
            None if request.path().contains("/manifests/") => Reply::ok(last.clone()),
            None => Reply::new(404),
        }
    })
    .await
}

async fn refusal(fixture: &Fixture, documents: Vec<Vec<u8>>) -> ImageError {
    let server = serve(documents).await;
    fixture.pull_fails(&format!("{}/app:1", server.address)).await
}

fn wrapped(inner: &[u8]) -> Vec<u8> {
    let media_type = Family::Oci.index();
    let entry = json!({"mediaType": media_type, "digest": digest(inner), "size": inner.len()});
    json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]}).to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_may_hold_an_index_to_some_depth() {
    let fixture = Fixture::new().await;
    let built = Built::small("x");
    let mut documents = built.blobs.clone();
    documents.push(built.manifest.clone());
    documents.push(index(Family::Oci, &[("amd64", "", &built), ("arm64", "v8", &built)]));
    for _ in 0..2 {
        documents.push(wrapped(documents.last().unwrap()));
    }
    let server = serve(documents.clone()).await;
    let id = fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
    assert_eq!(id.to_string(), built.id());
    let image = fixture.images.resolve(&built.id()).unwrap();
    let outermost = digest(documents.last().unwrap());
    assert_eq!(image.repo_digests, [format!("{}/app@{outermost}", server.address)]);
    fixture.images.remove(&built.id()).await.unwrap();

    documents.push(wrapped(documents.last().unwrap()));
    let error = refusal(&fixture, documents).await;
    assert!(text(&error).contains("nested too deeply"), "{}", text(&error));
}

/// A manifest of one layer, changed at will.
fn manifest(layer: &[u8], change: impl FnOnce(&mut Value)) -> Vec<Vec<u8>> {
    let built = Built::of_blobs(
        Family::Oci,
        json!({"os": "linux", "architecture": "amd64",
               "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}})
        .to_string()
        .into_bytes(),
        vec![gzip(layer)],
    );
    let mut value: Value = serde_json::from_slice(&built.manifest).unwrap();
    change(&mut value);
    let mut documents = built.blobs;
    documents.push(value.to_string().into_bytes());
    documents
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_is_taken_from_the_registry_when_it_is_there() {
    let fixture = Fixture::new().await;
    let layer = LayerBuilder::new().file("a", "b").build();
    let documents = manifest(&layer, |manifest| {
        manifest["layers"][0]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        manifest["layers"][0]["urls"] = json!(["https://foreign.invalid/layer"]);
    });
    let server = serve(documents).await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_comes_over_https_or_not_at_all() {
    let fixture = Fixture::new().await;
    let layer = LayerBuilder::new().file("a", "b").build();
    let temptation = Server::start(|_| Reply::ok("x")).await;
    let port = temptation.address.rsplit_once(':').unwrap().1.to_owned();
    for (url, word) in [
        (format!("http://{}/layer", temptation.address), "which is not HTTPS"),
        (format!("https://user:secret@127.0.0.1:{port}/layer"), "which is not HTTPS"),
        ("file:///etc/passwd".to_owned(), "which is not HTTPS"),
        (format!("https://127.0.0.1:{port}/layer"), "RegistryUnavailable: https://127.0.0.1"),
    ] {
        let mut documents = manifest(&layer, |manifest| {
            manifest["layers"][0]["mediaType"] =
                json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
            manifest["layers"][0]["urls"] = json!([url]);
        });
        documents.retain(|it| *it != gzip(&layer));
        let error = refusal(&fixture, documents).await;
        assert!(text(&error).contains(word), "{url}: {}", text(&error));
    }
    assert!(temptation.requests().is_empty(), "nothing was asked for in the clear");
    let mut without = manifest(&layer, |_| {});
    without.retain(|it| *it != gzip(&layer));
    let error = refusal(&fixture, without).await;
    assert!(matches!(cause(&error), ImageError::NotFound { .. }), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_artifacts_are_named() {
    let fixture = Fixture::new().await;
    let layer = LayerBuilder::new().file("a", "b").build();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 4] = [
        (|manifest| manifest["config"]["size"] = json!(9 << 20), "bytes are more than the 8388608 allowed"),
        (
            |manifest| {
                manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
                manifest["artifactType"] = json!("application/vnd.example.model");
            },
            "it is an artifact, not a container image (its artifact type is \"application/vnd.example.model\")",
        ),
        (
            |manifest| {
                let layer = manifest["layers"][0].clone();
                manifest["layers"] = json!(vec![layer; 501]);
            },
            "it has 501 layers",
        ),
        (
            |manifest| {
                let layer = manifest["layers"][0].clone();
                manifest["layers"] = json!([layer.clone(), layer]);
            },
            "it has 2 layers and 1 diff ids",
        ),
    ];
    for (change, word) in cases {
        let error = refusal(&fixture, manifest(&layer, change)).await;
        assert!(text(&error).contains(word), "{}", text(&error));
    }
}
