//! The certificate of the node's HTTPS endpoint.
//!
//! Signed by the cluster on request (signer `kubernetes.io/kubelet-serving`), which a person or a controller must approve;
//! self-signed until then, which the API server accepts unless it is told the authority of the kubelets.

use super::certificate::{Certificate, CertificateError, renewal_part};
use super::connection::Connection;
use super::signing::{Purpose, SigningRequest};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::Instant;

/// The certificate in use.
#[derive(Debug)]
pub struct ServingCertificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What it is for and how it is had.
#[derive(Debug)]
pub struct Serving {
    /// The node.
    pub node: String,
    /// Its DNS names.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Directory of certificates.
    pub pki: PathBuf,
}

impl Serving {
    /// The certificate of an earlier run, or a self-signed one; true if the cluster has still to sign one.
    pub fn start(&self) -> Result<(Arc<ServingCertificate>, Option<Certificate>), CertificateError> {
        let mut wanted: Vec<_> =
            self.names.iter().cloned().chain(self.addresses.iter().map(IpAddr::to_string)).collect();
        wanted.sort();
        let earlier = Certificate::read(&self.path()).ok().flatten();
        let earlier = earlier.filter(|earlier| earlier.is_valid() && earlier.alternative_names() == wanted);
        let first = match &earlier {
            Some(certificate) => certificate.clone(),
            None => self.self_signed()?,
        };
        Ok((Arc::new(ServingCertificate { current: RwLock::new(Arc::new(certified(&first)?)) }), earlier))
    }

    /// Has a certificate signed, and again before it ends.
    pub async fn keep(
        self,
        certificate: Arc<ServingCertificate>,
        mut signed: Option<Certificate>,
        connection: Arc<Connection>,
    ) {
        let mut received = None;
        loop {
            if let Some(signed) = &signed {
                super::sleep_until(signed.renew_at(renewal_part())).await;
                if !signed.is_valid() && received.take().is_some_and(super::is_just_now) {
                    super::clock_is_wrong(signed.not_after).await;
                    continue;
                }
            }
            let purpose = Purpose::Serving { names: self.names.clone(), addresses: self.addresses.clone() };
            let request = SigningRequest {
                node: self.node.clone(),
                purpose,
                pending: self.pki.join("serving.key"),
                server: connection.url(),
            };
            let new = match request.certificate(&connection.client()).await {
                Ok(new) => new,
                Err(error) => {
                    tracing::warn!(%error, "the node's endpoint has no certificate of the cluster; asking again in 10 min");
                    tokio::time::sleep(Duration::from_secs(600)).await;
                    continue;
                }
            };
            match certified(&new) {
                Ok(key) => *certificate.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key),
                Err(error) => tracing::error!(%error, "the signed certificate cannot be used"),
            }
            if let Err(error) = new.write(&self.path()) {
                tracing::error!(%error, "cannot write the endpoint's certificate");
            }
            tracing::info!(until = %new.not_after, "the node's endpoint has a certificate of the cluster");
            (signed, received) = (Some(new), Some(Instant::now()));
        }
    }

    fn path(&self) -> PathBuf {
        self.pki.join("serving.pem")
    }

    fn self_signed(&self) -> Result<Certificate, CertificateError> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(self.names.clone())?;
        parameters.subject_alt_names.extend(self.addresses.iter().map(|address| SanType::IpAddress(*address)));
        parameters.distinguished_name.push(DnType::CommonName, format!("{}@self-signed", self.node));
        Certificate::new(&parameters.self_signed(&key)?.pem(), &key)
    }
}

fn certified(certificate: &Certificate) -> Result<CertifiedKey, CertificateError> {
    let malformed = |error: String| CertificateError::Malformed(error);
    let chain = CertificateDer::pem_slice_iter(certificate.chain().as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(error.to_string()))?;
    let key =
        PrivateKeyDer::from_pem_slice(certificate.key().as_bytes()).map_err(|error| malformed(error.to_string()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| malformed(error.to_string()))
}
