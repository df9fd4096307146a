//! TLS of requests: by the authorities that the machine trusts, or with any certificate where a rule says so.

use crate::network::urls::Certificates;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

/// How long the machine's authorities are remembered, and that they cannot be read.
const REMEMBERED: Duration = Duration::from_secs(600);
const FAILED: Duration = Duration::from_secs(60);

/// By the machine's authorities, as they were at that time.
static TRUSTING: Mutex<Option<(Instant, Option<Arc<ClientConfig>>)>> = Mutex::const_new(None);

/// What makes a connection one of TLS; none if it is not known whom this machine trusts.
pub(super) async fn connector(certificates: Certificates) -> Option<TlsConnector> {
    if certificates == Certificates::Any {
        static ANY: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
        let config = ANY.get_or_init(|| {
            let provider = provider();
            let any = AnyCertificate(provider.signature_verification_algorithms);
            config(provider, Arc::new(any)).ok()
        });
        return config.clone().map(TlsConnector::from);
    }
    let mut trusting = TRUSTING.lock().await;
    let config = match &*trusting {
        Some((at, Some(config))) if at.elapsed() < REMEMBERED => Some(config.clone()),
        Some((at, None)) if at.elapsed() < FAILED => None,
        _ => {
            let read = || Verifier::new(provider()).and_then(|verifier| config(provider(), Arc::new(verifier)));
            let read = tokio::task::spawn_blocking(read).await;
            let config = match read {
                Ok(Ok(config)) => Some(config),
                failed => {
                    tracing::warn!(
                        "requests of guests by https fail: whom this machine trusts cannot be read: {failed:?}"
                    );
                    None
                }
            };
            *trusting = Some((Instant::now(), config.clone()));
            config
        }
    };
    config.map(TlsConnector::from)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn config(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A server could tell one pod's guests by another's.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Whether a handshake failed for what the server showed.
pub(super) fn is_about_certificates(error: &io::Error) -> bool {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(of_tls, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}

/// Takes the certificate of anybody who has its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
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
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
