//! Credentials of the machine, for pulls that bring none.

use image::{Auth, ImageError};
use serde_json::json;

use crate::builder::Built;
use crate::fixture::{Fixture, cause};
use crate::server::{Content, Reply, Server};

/// `user:machine`
const MACHINE: &str = "Basic dXNlcjptYWNoaW5l";
/// `user:secret`
const OWN: &str = "Basic dXNlcjpzZWNyZXQ=";

/// A registry that lets those in who have one of two passwords.
async fn registry() -> Server {
    let content = Content::new(&Built::small("x"));
    Server::start(move |request| match request.header("authorization") {
        Some(MACHINE | OWN) => content.reply(request),
        _ => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await
}

fn used(server: &Server) -> Vec<String> {
    let mut used: Vec<String> = server
        .requests()
        .iter()
        .filter_map(|request| request.header("authorization").map(str::to_owned))
        .collect();
    used.sort();
    used.dedup();
    used
}

/// A store whose machine has a password for `key`.
async fn fixture(keys: &[&str]) -> Fixture {
    let fixture = Fixture::new().await;
    let path = fixture.directory.path().join("config.json");
    let entries: serde_json::Map<_, _> =
        keys.iter().map(|key| ((*key).to_owned(), json!({"auth": "dXNlcjptYWNoaW5l"}))).collect();
    std::fs::write(&path, json!({"auths": entries}).to_string()).unwrap();
    let config = crate::fixture::config(fixture.directory.path());
    fixture.images.reconfigure(image::StoreConfig { auth_files: vec![path], ..config });
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_has_credentials_for_pulls_that_bring_none() {
    let server = registry().await;
    let fixture = fixture(&[&server.address]).await;
    fixture.pull(&format!("{}/app:1", server.address)).await.unwrap();
    assert_eq!(used(&server), [MACHINE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pull_brings_is_used_before_the_machines() {
    let server = registry().await;
    let fixture = fixture(&[&server.address]).await;
    let own = Auth { username: "user".into(), password: "secret".into(), ..Auth::default() };
    fixture.pull_as(&format!("{}/app:1", server.address), Some(own)).await.unwrap();
    assert_eq!(used(&server), [OWN]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_credentials_are_for_the_path_they_name() {
    let server = registry().await;
    let fixture = fixture(&[&format!("http://{}/team", server.address)]).await;
    let error = fixture.pull(&format!("{}/app:1", server.address)).await.unwrap_err();
    assert!(matches!(cause(&error), ImageError::Unauthenticated { .. }));
    assert_eq!(used(&server), [""; 0]);
    fixture.pull(&format!("{}/team/app:1", server.address)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_what_the_machine_has_for_the_mirror() {
    let mirror = registry().await;
    let fixture = fixture(&[&mirror.address]).await;
    let hosts = format!("server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n", mirror.address);
    fixture.write_hosts("registry.example", &hosts);
    let own = Auth { username: "user".into(), password: "secret".into(), ..Auth::default() };
    fixture.pull_as("registry.example/app:1", Some(own)).await.unwrap();
    assert_eq!(used(&mirror), [MACHINE], "and not what the pull brought for the registry");
}
