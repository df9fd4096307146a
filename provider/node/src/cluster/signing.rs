//! Certificates by CertificateSigningRequest.

use super::certificate::{Certificate, CertificateError, PendingKey};
use super::connection::{code, describe, watch_back_off};
use akri_krustlet_host::BackOff;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use rcgen::{CertificateParams, DistinguishedName, DnType, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Being the node towards the API server.
    Client,
    /// Being the node's HTTPS endpoint, at these names and addresses.
    Serving {
        /// DNS names.
        names: Vec<String>,
        /// Addresses.
        addresses: Vec<IpAddr>,
    },
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// A key or certificate is unusable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The API server does not know who asks.
    #[error(
        "{server} refuses the bootstrap token: {message}; it is wrong or has expired: make a new one (kubeadm token create)"
    )]
    Unauthorized {
        /// The API server.
        server: String,
        /// What it said.
        message: String,
    },
    /// Who asks may not ask.
    #[error(
        "{server}: {message}; bind the group of the bootstrap token to ClusterRole system:node-bootstrapper (manifests/node/rbac.yaml does)"
    )]
    Forbidden {
        /// The API server.
        server: String,
        /// What it said.
        message: String,
    },
    /// Somebody said no.
    #[error(
        "CertificateSigningRequest {name} was denied: {message}; to try again, delete it (kubectl delete csr {name}) and start the node"
    )]
    Denied {
        /// The request.
        name: String,
        /// Why.
        message: String,
    },
    /// The signer could not.
    #[error("CertificateSigningRequest {name} failed: {message}")]
    Failed {
        /// The request.
        name: String,
        /// Why.
        message: String,
    },
    /// The request is not accepted by the API.
    #[error("CertificateSigningRequest {name}: {message}")]
    Refused {
        /// The request.
        name: String,
        /// Why.
        message: String,
    },
}

/// Who asks for what.
#[derive(Clone, Debug)]
pub(super) struct SigningRequest {
    pub(super) node: String,
    pub(super) purpose: Purpose,
    /// Where the key waits for its certificate.
    pub(super) pending: PathBuf,
    /// The API server, for messages.
    pub(super) server: String,
}

/// Pause before an API server that did not answer is asked again; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Time that an automatic approval may take before a person is asked for one.
const AUTOMATIC: Duration = Duration::from_secs(3);

impl SigningRequest {
    /// Asks, waits for as long as it takes, and returns the certificate. A request that an earlier run of the node made is
    /// taken up again; one that is gone is made anew.
    pub(super) async fn certificate(&self, client: &Client) -> Result<Certificate, SigningError> {
        let pending = PendingKey::take_up(self.pending.clone())?;
        let csr = self.object(&pending)?;
        let result = self.obtain(client, &csr, &pending).await;
        if !matches!(result, Err(SigningError::Unauthorized { .. } | SigningError::Forbidden { .. })) {
            // Signed, or refused for good: the next request is another one.
            pending.discard();
        }
        result
    }

    async fn obtain(
        &self,
        client: &Client,
        csr: &CertificateSigningRequest,
        pending: &PendingKey,
    ) -> Result<Certificate, SigningError> {
        let api: Api<CertificateSigningRequest> = Api::all(client.clone());
        let name = csr.metadata.name.clone().unwrap_or_default();
        let mut back_off = BackOff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match api.create(&PostParams::default(), csr).await {
                Ok(_) => tracing::info!(csr = name, "certificate asked for"),
                Err(error) if code(&error) == Some(409) => {}
                Err(error) => match code(&error) {
                    Some(401) => {
                        return Err(SigningError::Unauthorized {
                            server: self.server.clone(),
                            message: describe(&error),
                        });
                    }
                    Some(403) => {
                        return Err(SigningError::Forbidden { server: self.server.clone(), message: describe(&error) });
                    }
                    Some(400 | 422) => return Err(SigningError::Refused { name, message: describe(&error) }),
                    _ => {
                        let pause = back_off.pause();
                        tracing::warn!(
                            server = self.server,
                            "cannot ask for a certificate: {}; trying again in {} s",
                            describe(&error),
                            pause.as_secs_f32()
                        );
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                },
            }
            if let Some(certificate) = self.wait(&api, &name, pending).await? {
                return Ok(certificate);
            }
            tracing::warn!(
                csr = name,
                "the request is gone, most likely because nobody approved it in time; asking again"
            );
        }
    }

    /// `None` if the request was removed.
    async fn wait(
        &self,
        api: &Api<CertificateSigningRequest>,
        name: &str,
        pending: &PendingKey,
    ) -> Result<Option<Certificate>, SigningError> {
        let changes = kube::runtime::watcher::watch_object(api.clone(), name).backoff(watch_back_off());
        pin_mut!(changes);
        let remind = tokio::time::sleep(AUTOMATIC);
        pin_mut!(remind);
        let (mut reminded, mut outage) = (false, false);
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = &mut remind, if !reminded => {
                    reminded = true;
                    let what = match self.purpose {
                        Purpose::Client => "this node's certificate",
                        Purpose::Serving { .. } => {
                            "the certificate of this node's endpoint (until then it has a self-signed one)"
                        }
                    };
                    tracing::warn!("waiting for approval of {what}: kubectl certificate approve {name}");
                    continue;
                }
            };
            let csr = match change {
                Some(Ok(Some(csr))) => {
                    outage = false;
                    csr
                }
                Some(Ok(None)) => return Ok(None),
                Some(Err(error)) => {
                    if !std::mem::replace(&mut outage, true) {
                        tracing::warn!(csr = name, "cannot watch the request: {error}; trying again");
                    }
                    continue;
                }
                None => return Ok(None),
            };
            let status = csr.status.unwrap_or_default();
            for condition in status.conditions.iter().flatten() {
                let message = condition.message.clone().or_else(|| condition.reason.clone()).unwrap_or_default();
                let name = name.to_owned();
                match condition.type_.as_str() {
                    "Denied" => return Err(SigningError::Denied { name, message }),
                    "Failed" => return Err(SigningError::Failed { name, message }),
                    _ => {}
                }
            }
            if let Some(certificate) = status.certificate {
                let pem = String::from_utf8_lossy(&certificate.0).into_owned();
                return Ok(Some(Certificate::new(&pem, &pending.key)?));
            }
        }
    }

    fn object(&self, pending: &PendingKey) -> Result<CertificateSigningRequest, CertificateError> {
        let (names, addresses) = match &self.purpose {
            Purpose::Client => (Vec::new(), Vec::new()),
            Purpose::Serving { names, addresses } => (names.clone(), addresses.clone()),
        };
        let mut parameters = CertificateParams::new(names.clone())?;
        for address in &addresses {
            parameters.subject_alt_names.push(rcgen::SanType::IpAddress(*address));
        }
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "system:nodes");
        subject.push(DnType::CommonName, format!("system:node:{}", self.node));
        parameters.distinguished_name = subject;
        let request = parameters.serialize_request(&pending.key)?.pem()?;
        // Named by what is asked for with which key: a restart finds its own request, and never another's.
        let mut hash = Sha256::new();
        hash.update(pending.key.subject_public_key_info());
        hash.update(format!("{} {names:?} {addresses:?}", self.node));
        let hash: String = hash.finalize().iter().take(10).map(|byte| format!("{byte:02x}")).collect();
        let (prefix, signer, usage) = match self.purpose {
            Purpose::Client => ("node-csr", "kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
            Purpose::Serving { .. } => ("node-serving-csr", "kubernetes.io/kubelet-serving", "server auth"),
        };
        Ok(CertificateSigningRequest {
            metadata: ObjectMeta { name: Some(format!("{prefix}-{hash}")), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.into_bytes()),
                signer_name: signer.to_owned(),
                usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        })
    }
}
