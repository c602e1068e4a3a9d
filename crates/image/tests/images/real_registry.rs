//! Pulls from Debian's registry, over HTTP and HTTPS.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use image::{Auth, ImageError, ImageUser, Platform, PullRequest};
use types::{ErrorKind, Kind};

use crate::builder::{Built, Family, LayerBuilder, digest, index};
use crate::fixture::{Fixture, View, cause, text};
use crate::registry::{Access, Registry};

/// Three layers that use everything a layer can hold.
fn rich_layers() -> Vec<Vec<u8>> {
    let base = LayerBuilder::new()
        .directory("etc/")
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .file("etc/gone", "hidden by the next layer")
        .file("etc/changed", "old")
        .directory("cache/")
        .file("cache/old", "hidden with its directory")
        .entry("bin/su", |header| header.set_mode(0o4755), b"#!")
        .link(tar::EntryType::Link, "bin/su-too", "bin/su")
        .link(tar::EntryType::Symlink, "lib", "usr/lib");
    let changes = LayerBuilder::new()
        .directory("etc/")
        .file("etc/.wh.gone", "")
        .file("etc/changed", "new")
        .file("cache/.wh..wh..opq", "")
        .file("cache/new", "visible");
    let device = |header: &mut tar::Header| {
        header.set_entry_type(tar::EntryType::Char);
        header.set_device_major(1).unwrap();
        header.set_device_minor(5).unwrap();
    };
    let owned = |header: &mut tar::Header| {
        header.set_uid(1000);
        header.set_gid(2000);
    };
    let top = LayerBuilder::new().entry("dev/zero", device, b"").entry("home/file", owned, b"mine");
    vec![base.build(), changes.build(), top.build()]
}

fn assert_is_rich(view: &View) {
    assert_eq!(view.names("etc"), ["changed", "passwd"]);
    assert_eq!(view.read("etc/changed").as_deref(), Some("new"));
    assert_eq!(view.names("cache"), ["new"]);
    let meta = |name: &str| std::fs::symlink_metadata(view.path(name)).unwrap();
    assert_eq!(meta("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!((meta("bin/su").ino(), meta("bin/su").nlink()), (meta("bin/su-too").ino(), 2));
    assert_eq!(std::fs::read_link(view.path("lib")).unwrap(), Path::new("usr/lib"));
    assert!(meta("dev/zero").file_type().is_char_device());
    assert_eq!((meta("home/file").uid(), meta("home/file").gid()), (1000, 2000));
    assert_eq!(meta("etc/changed").mtime(), 1_600_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_both_families_are_pulled_used_and_removed() {
    let fixture = Fixture::new().await;
    let registry = Registry::start(fixture.directory.path(), "plain", &Access::default());
    for (family, tag) in [(Family::Oci, "oci"), (Family::Docker, "docker")] {
        let built = Built::new(family, &rich_layers());
        registry.push("team/app", tag, &built);
        let reference = format!("{}/team/app:{tag}", registry.address);
        let id = fixture.pull(&reference).await.unwrap();
        assert_eq!(id.to_string(), built.id());
        assert_eq!(fixture.pull(&reference).await.unwrap(), id, "a second pull changes nothing");

        let record = fixture.images.resolve(&reference).unwrap();
        let by_digest = format!("{}/team/app@{}", registry.address, digest(&built.manifest));
        assert!(record.repo_tags.contains(&reference) && record.repo_digests.contains(&by_digest));
        assert_eq!(record.size, built.blobs.iter().map(|blob| blob.len() as u64).sum::<u64>());
        assert_eq!(record.user(), ImageUser::Uid(1000));
        assert_eq!(fixture.images.resolve(&by_digest).unwrap().id, id);

        let rootfs = fixture.images.lease("container", &id).await.unwrap();
        assert_eq!(rootfs.layers.len(), 3);
        assert_is_rich(&View::of(&rootfs));
        fixture.images.release("container").await.unwrap();
    }
    // Both families hold the same layers and config, so they are one image under two tags.
    let [image] = fixture.images.list().try_into().unwrap();
    assert_eq!((image.repo_tags.len(), image.repo_digests.len()), (2, 2));
    fixture.images.remove(image.id.0.as_str()).await.unwrap();
    assert!(fixture.images.list().is_empty());
    fixture.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_image_of_an_index_is_pulled() {
    let fixture = Fixture::new().await;
    let registry = Registry::start(fixture.directory.path(), "plain", &Access::default());
    for (family, tag) in [(Family::Oci, "index"), (Family::Docker, "list")] {
        let build = |content: &str| Built::new(family, &[LayerBuilder::new().file("which", content).build()]);
        let (host, other) = (build(&format!("host {tag}")), build(&format!("other {tag}")));
        let architecture = Platform::host().architecture;
        let list = index(family, &[("s390x", "", &other), (&architecture, &Platform::host().variant, &host)]);
        for image in [&host, &other] {
            registry.push_manifest_only("multi", &digest(&image.manifest), image);
        }
        registry.push_index("multi", tag, family, &list);
        let reference = format!("{}/multi:{tag}", registry.address);
        let id = fixture.pull(&reference).await.unwrap();
        assert_eq!(id.to_string(), host.id());
        let record = fixture.images.resolve(&reference).unwrap();
        assert_eq!(record.repo_digests, [format!("{}/multi@{}", registry.address, digest(&list))]);
        assert_eq!(record.manifest.to_string(), digest(&host.manifest));

        let platform = Platform { os: "linux".into(), architecture: "s390x".into(), variant: String::new() };
        let request = PullRequest {
            reference: format!("{}/multi@{}", registry.address, digest(&list)),
            platform: Some(platform),
            auth: None,
        };
        assert_eq!(fixture.images.pull(request).await.unwrap().to_string(), other.id());
        let nowhere = Platform { os: "linux".into(), architecture: "vax".into(), variant: String::new() };
        let request = PullRequest { reference, platform: Some(nowhere), auth: None };
        let error = fixture.images.pull(request).await.unwrap_err();
        assert!(
            matches!(cause(&error), ImageError::NoPlatform { .. }) && error.kind() == ErrorKind::NotFound
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_images_are_not_found() {
    let fixture = Fixture::new().await;
    let registry = Registry::start(fixture.directory.path(), "plain", &Access::default());
    let error = fixture.pull_fails(&format!("{}/nothing/here:1", registry.address)).await;
    assert!(matches!(cause(&error), ImageError::NotFound { .. }), "{}", text(&error));
    assert!(text(&error).contains("nothing/here:1"));
}

/// An authority of our own and a certificate for 127.0.0.1 by it.
fn make_certificates(directory: &Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).unwrap();
    std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(directory.join("server.pem"), server.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn https_with_an_own_authority_and_a_password() {
    let fixture = Fixture::new().await;
    let directory = fixture.directory.path();
    make_certificates(directory);
    let built = Built::small("secret");
    Registry::start(directory, "plain", &Access::default()).push("private", "1", &built);
    let (certificate, key) = (directory.join("server.pem"), directory.join("server.key"));
    let access = Access { tls: Some((&certificate, &key)), password: true, ..Access::default() };
    let registry = Registry::start(directory, "tls", &access);
    let reference = format!("{}/private:1", registry.address);
    let auth =
        |password: &str| Auth { username: "user".into(), password: password.into(), ..Auth::default() };

    fixture.write_hosts(&registry.address, &format!("server = \"https://{}\"", registry.address));
    let error = fixture.pull_fails(&reference).await;
    assert!(text(&error).starts_with("RegistryUnavailable: "), "an unknown authority: {}", text(&error));

    let ca =
        format!("server = \"https://{}\"\nca = \"{}\"", registry.address, directory.join("ca.pem").display());
    fixture.write_hosts(&registry.address, &ca);
    assert_eq!(fixture.pull_fails(&reference).await.kind(), ErrorKind::Unauthenticated, "nobody");
    let wrong = fixture.pull_as(&reference, Some(auth("wrong"))).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Unauthenticated, "{}", text(&wrong));
    let elsewhere = Auth { server_address: "https://elsewhere.example".into(), ..auth("secret") };
    let unused = fixture.pull_as(&reference, Some(elsewhere)).await.unwrap_err();
    assert_eq!(unused.kind(), ErrorKind::Unauthenticated, "credentials of another server");
    fixture.assert_empty();

    let encoded = Auth { auth: "dXNlcjpzZWNyZXQ=".into(), ..Auth::default() };
    for auth in [auth("secret"), encoded] {
        assert_eq!(fixture.pull_as(&reference, Some(auth)).await.unwrap().to_string(), built.id());
        fixture.images.remove(&reference).await.unwrap();
        fixture.assert_empty();
    }

    let skip = format!("server = \"https://{}\"\nskip_verify = true", registry.address);
    fixture.write_hosts(&registry.address, &skip);
    fixture.pull_as(&reference, Some(auth("secret"))).await.unwrap();
}
