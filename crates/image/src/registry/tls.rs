//! TLS towards one server: whom to believe, and who we are.
//!
//! A certificate that is itself listed in `ca` is believed when its server shows it, also when it calls itself an
//! authority (what `openssl req -x509` makes) or its issuer is not listed: the operator named this very server. Its
//! period and its host names count all the same.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::ImageError;
use crate::hosts::{Identity, Trust};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The system's certificate authorities, read when the first pull needs them.
#[derive(Debug, Default)]
pub(crate) struct Roots(OnceLock<RootCertStore>);

impl Roots {
    fn store(&self) -> RootCertStore {
        self.0.get_or_init(load_system_roots).clone()
    }
}

fn load_system_roots() -> RootCertStore {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(op = "pull", error = %error, "some of the system's certificate authorities cannot be read");
    }
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(loaded.certs);
    store
}

pub(super) fn client_config(trust: &Trust, roots: &Roots) -> Result<ClientConfig, ImageError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| ImageError::store("setting TLS up", std::io::Error::other(error)))?;
    let identities = Identities::read(&trust.client, &provider)?;
    let builder = if trust.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone(provider)))
    } else if trust.ca.is_empty() {
        builder.with_root_certificates(roots.store())
    } else {
        let verifier = Listed::new(trust, roots, provider)?;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    Ok(builder.with_client_cert_resolver(Arc::new(identities)))
}

/// `client`: the certificates to show, in the file's order.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl Identities {
    fn read(files: &[Identity], provider: &CryptoProvider) -> Result<Self, ImageError> {
        let read = |Identity { certificate, key }: &Identity| {
            let chain = read_certificates(certificate).map_err(unusable(certificate))?;
            let key_in = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key)(error.into()))?;
            let certified = CertifiedKey::from_der(chain, key_in, provider);
            certified.map(Arc::new).map_err(|error| unusable(key)(error.into()))
        };
        Ok(Self(files.iter().map(read).collect::<Result<_, _>>()?))
    }
}

/// Whether one of the chain's certificates was issued by one of the authorities that the server named.
fn is_issued_by_any(identity: &CertifiedKey, authorities: &[&[u8]]) -> bool {
    identity.cert.iter().any(|certificate| {
        let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
        authorities.iter().any(|authority| is_name(authority, certificate.issuer()))
    })
}

/// A name's content, behind its tag and length.
fn is_name(whole: &[u8], content: &[u8]) -> bool {
    const MAX_HEADER: usize = 4;
    whole.ends_with(content) && whole.len() <= content.len() + MAX_HEADER
}

impl ResolvesClientCert for Identities {
    /// One of an authority that the server named if there is one, else the first that it can check.
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut usable = self.0.iter().filter(|identity| identity.key.choose_scheme(schemes).is_some());
        let named = usable.clone().find(|identity| is_issued_by_any(identity, authorities));
        named.or_else(|| usable.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

fn unusable(path: &Path) -> impl Fn(BoxError) -> ImageError {
    move |source| ImageError::Hosts { path: path.to_owned(), source }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BoxError> {
    let found = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err("no certificate is in it".into()) } else { Ok(found) }
}

/// `ca`: the system's authorities and those listed, and the listed certificates themselves.
#[derive(Debug)]
struct Listed {
    authorities: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Listed {
    fn new(trust: &Trust, roots: &Roots, provider: Arc<CryptoProvider>) -> Result<Self, ImageError> {
        let mut store = roots.store();
        let mut certificates = Vec::new();
        for path in &trust.ca {
            for certificate in read_certificates(path).map_err(unusable(path))? {
                store.add(certificate.clone()).map_err(|error| unusable(path)(error.into()))?;
                certificates.push(certificate);
            }
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|error| ImageError::store("setting TLS up", std::io::Error::other(error)))?;
        Ok(Self { authorities, certificates })
    }
}

/// Whether only the way from the certificate to an authority is at fault. The period is checked before these.
fn is_about_the_chain(error: &rustls::Error) -> bool {
    match error {
        // A bad signature: the certificate's issuer has the name of another authority.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => true,
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}

impl ServerCertVerifier for Listed {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.authorities.verify_server_cert(server, intermediates, name, ocsp_response, now);
        match verified {
            Err(error) if is_about_the_chain(&error) && self.certificates.contains(server) => {
                verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// `skip_verify`: the operator asked for it in `hosts.toml`.
#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
