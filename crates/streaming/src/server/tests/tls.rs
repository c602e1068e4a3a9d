//! Sessions inside TLS.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// Writes an authority and a certificate of it.
fn write(directory: &Path, name: &str) {
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    for (kind, text) in [("ca", authority.pem()), ("crt", certificate.pem()), ("key", key.serialize_pem())] {
        std::fs::write(directory.join(format!("{name}.{kind}")), text).unwrap();
    }
}

fn client(directory: &Path, trusts: &str, is: Option<&str>) -> TlsConnector {
    let read = |name: String| CertificateDer::from_pem_file(directory.join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(read(format!("{trusts}.ca"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match is {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![read(format!("{name}.crt"))], key).unwrap()
        }
    };
    Arc::new(config).into()
}

async fn secure(running: &Running, connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(running.address).await?;
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), tcp).await
}

fn files(directory: &Path, client_ca: Option<&str>) -> TlsFiles {
    TlsFiles {
        certificate: directory.join("server.crt"),
        key: directory.join("server.key"),
        client_ca: client_ca.map(|name| directory.join(name)),
    }
}

#[tokio::test]
async fn a_session_runs_inside_tls_and_certificates_can_change() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "server");
    let mut running = Running::with(|config| config.tls = Some(files(directory.path(), None))).await;
    let old = client(directory.path(), "server", None);
    let url = running.exec("io");
    let stream = secure(&running, &old).await.unwrap();
    let mut session = upgrade(stream, &url.replace("https", "http"), "v4.channel.k8s.io").await.unwrap();
    assert!(url.starts_with("https://"));
    let mut far = running.processes.recv().await.unwrap();

    write(directory.path(), "server");
    running.server.reload_tls().unwrap();
    assert!(secure(&running, &old).await.is_err());
    assert!(secure(&running, &client(directory.path(), "server", None)).await.is_ok());
    std::fs::write(directory.path().join("server.crt"), "nothing").unwrap();
    assert!(running.server.reload_tls().is_err());
    assert!(secure(&running, &client(directory.path(), "server", None)).await.is_ok(), "as before");

    far.stdout.as_mut().unwrap().write_all(&[b'x'; 300_000]).await.unwrap_or_default();
    far.exit(0);
    let (channels, code) = rest(&mut session, "").await;
    assert_eq!((channels[&1].len(), code), (300_000, CloseCode::Normal));
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_authority_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["server", "user", "stranger"] {
        write(directory.path(), name);
    }
    let running = Running::with(|config| config.tls = Some(files(directory.path(), Some("user.ca")))).await;
    for (who, welcome) in [(None, false), (Some("stranger"), false), (Some("user"), true)] {
        let url = running.exec("io").replace("https", "http");
        let connector = client(directory.path(), "server", who);
        let session = match secure(&running, &connector).await {
            Ok(stream) => upgrade(stream, &url, "").await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(session, welcome, "{who:?}");
    }
    // Plain HTTP is none of its languages.
    let mut plain = TcpStream::connect(running.address).await.unwrap();
    plain.write_all(b"GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP"));
}

#[test]
fn unusable_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (backend, _) = fake::backend();
    let mut config = Config::new("127.0.0.1:1");
    config.tls = Some(files(directory.path(), None));
    let error = Server::new(config, backend).unwrap_err();
    assert!(error.to_string().contains("server.crt"), "{error}");
}
