//! Certificates: a registry's own, listed by the operator.

use std::path::{Path, PathBuf};

use image::ImageId;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use crate::builder::Built;
use crate::fixture::{Fixture, text};
use crate::registry::{Access, Registry};

/// A certificate and its key, in files.
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Files {
    /// As `openssl req -x509` makes it: signed by itself, and calling itself an authority.
    pub(crate) fn self_signed(
        directory: &Path,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
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

/// An authority, in a file, that can issue certificates.
struct Authority {
    certificate: PathBuf,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = directory.join(format!("{name}.crt"));
        std::fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn issue(&self, directory: &Path, name: &str) -> Files {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Files::write(directory, name, &certificate, &key)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_in_every_form_of_the_key() {
    let fixture = Fixture::new().await;
    let directory = fixture.directory.path();
    let own = Files::self_signed(directory, "own", |_| {});
    let (known, unknown) = (Authority::new(directory, "known"), Authority::new(directory, "unknown"));
    let (client, stranger) = (known.issue(directory, "client"), unknown.issue(directory, "stranger"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    std::fs::write(directory.join("both.pem"), read(&client.certificate) + &read(&client.key)).unwrap();

    Registry::start(directory, "plain", &Access::default()).push("app", "1", &Built::small("x"));
    let tls = Some((own.certificate.as_path(), own.key.as_path()));
    let access = Access { tls, clients: Some(&known.certificate), ..Access::default() };
    let registry = Registry::start(directory, "tls", &access);
    let pull = async |client: &str| {
        let ca = own.certificate.display();
        let hosts = format!("server = \"https://{}\"\nca = \"{ca}\"\n{client}", registry.address);
        fixture.write_hosts(&registry.address, &hosts);
        fixture.pull(&format!("{}/app:1", registry.address)).await.map_err(|error| text(&error))
    };
    let pair = |files: &Files| format!("[\"{}\", \"{}\"]", files.certificate.display(), files.key.display());
    let both = directory.join("both.pem");
    for client in [
        format!("client = \"{}\"", both.display()),
        format!("client = [\"{}\"]", both.display()),
        format!("client = [[\"{}\", \"\"]]", both.display()),
        format!("client = [{}]", pair(&client)),
        format!("client = [{}, {}]", pair(&stranger), pair(&client)),
    ] {
        pull(&client).await.unwrap_or_else(|error| panic!("{client}: {error}"));
        fixture.images.remove(&format!("{}/app:1", registry.address)).await.unwrap();
    }
    assert!(pull("").await.is_err());
    assert!(pull(&format!("client = [{}]", pair(&stranger))).await.is_err());
    let mixed = format!("client = [[\"{}\", \"{}\"]]", client.certificate.display(), stranger.key.display());
    let error = pull(&mixed).await.unwrap_err();
    assert!(error.contains("stranger.key"), "{error}");
}
