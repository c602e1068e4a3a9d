//! Certificates: a registry's own, listed by the operator.

use std::path::{Path, PathBuf};

use image::ImageId;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use crate::builder::Built;
use crate::fixture::{Fixture, text};
use crate::registry::{Access, Registry};

/// A certificate and its key, in files.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    /// As `openssl req -x509` makes it: signed by itself, and calling itself an authority.
    fn self_signed(directory: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self::write(directory, name, &certificate, &key)
    }

    fn write(directory: &Path, name: &str, certificate: &str, key: &KeyPair) -> Self {
        let place = |extension: &str| directory.join(format!("{name}.{extension}"));
        let files = Self { certificate: place("crt"), key: place("key") };
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// Pulls from a registry that shows `shown`, with `listed` in `ca`.
async fn pull_from(fixture: &Fixture, shown: &Files, listed: &Path) -> Result<ImageId, String> {
    let directory = fixture.directory.path();
    Registry::start(directory, "plain", &Access::default()).push("app", "1", &Built::small("x"));
    let access = Access { tls: Some((&shown.certificate, &shown.key)), ..Access::default() };
    let registry = Registry::start(directory, "tls", &access);
    let url = format!("https://{}", registry.address);
    let hosts = format!("server = \"{url}\"\n[host.\"{url}\"]\nca = \"{}\"", listed.display());
    fixture.write_hosts(&registry.address, &hosts);
    fixture.pull(&format!("{}/app:1", registry.address)).await.map_err(|error| text(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_certificate_is_believed_from_its_own_server() {
    let fixture = Fixture::new().await;
    let own = Files::self_signed(fixture.directory.path(), "own", |_| {});
    pull_from(&fixture, &own, &own.certificate).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_certificate_counts_without_its_issuer() {
    let fixture = Fixture::new().await;
    let authority = CertificateParams::new(Vec::new()).unwrap();
    let issuer = rcgen::Issuer::new(authority, KeyPair::generate().unwrap());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let issued = params.signed_by(&key, &issuer).unwrap().pem();
    let own = Files::write(fixture.directory.path(), "issued", &issued, &key);
    pull_from(&fixture, &own, &own.certificate).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_certificate_has_its_period_and_its_names() {
    let fixture = Fixture::new().await;
    let directory = fixture.directory.path();
    let expired = Files::self_signed(directory, "expired", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let elsewhere = Files::self_signed(directory, "elsewhere", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("r.example".try_into().unwrap())];
    });
    for (own, word) in [(expired, "expired"), (elsewhere, "not valid for name")] {
        let error = pull_from(&fixture, &own, &own.certificate).await.unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_like_the_listed_one_is_not_that_one() {
    let fixture = Fixture::new().await;
    let directory = fixture.directory.path();
    let listed = Files::self_signed(directory, "listed", |_| {});
    let other = Files::self_signed(directory, "other", |_| {});
    assert!(pull_from(&fixture, &other, &listed.certificate).await.is_err());
    std::fs::write(directory.join("empty.pem"), "").unwrap();
    let error = pull_from(&fixture, &listed, &directory.join("empty.pem")).await.unwrap_err();
    assert!(error.contains("empty.pem"), "{error}");
}
