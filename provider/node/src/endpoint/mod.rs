//! The node's HTTPS endpoint, which the API server asks for logs, and those who watch the node for its metrics.
//!
//! # Flow
//! 1. TLS, with the [`ServingCertificate`] of the moment; a client may show a certificate.
//! 2. [`authentication`]: who asks. By a certificate of the cluster, or by a bearer token that the API server knows.
//! 3. [`authorization`]: whether the API server lets them. Nothing of a request but its path is looked at before.
//! 4. The answer.
//!
//! # Guarantees
//! - Nobody who is not allowed learns whether a pod exists.
//! - No number in a request makes the node allocate in proportion to it.
//! - Connections, the size of their headers and the time that they may be silent are bounded.

mod answers;
pub mod authentication;
pub mod authorization;
mod logs;

use crate::cluster::serving::ServingCertificate;
use crate::data_directory::DataDirectory;
use crate::metrics::NodeMetrics;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_host::file::ReadFiles;
use akri_krustlet_metrics::Format;
use authentication::{Authenticator, LenientVerifier, Refusal};
use authorization::Authorizer;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// Connections at once; more wait.
const CONNECTIONS: usize = 256;
/// Time for the TLS handshake, and for the headers of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);
/// Bytes of a request's headers, and how many there may be.
const MOST_HEADER_BYTES: usize = 32 << 10;
const MOST_HEADERS: usize = 64;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Why the endpoint does not start.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The port is taken.
    #[error(
        "the node's endpoint cannot listen on {address}: {source}; is another node or a kubelet running? Choose another --port"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The cluster's authorities are unusable.
    #[error("the certificate authorities for clients of the node's endpoint cannot be used: {0}")]
    Authorities(String),
}

/// What the endpoint needs.
pub struct EndpointConfig {
    /// The node.
    pub node: String,
    /// Where to listen.
    pub address: SocketAddr,
    /// What it shows to clients.
    pub certificate: Arc<ServingCertificate>,
    /// Whose certificates clients may have, DER.
    pub client_authorities: Vec<Vec<u8>>,
    /// The file that they were read from, which is read again when it is changed.
    pub client_authorities_file: Option<(PathBuf, ReadFiles)>,
    /// Whether `/healthz` is for everybody.
    pub anonymous_healthz: bool,
    /// Asks the API server about tokens and permissions.
    pub client: kube::Client,
    /// The pods and their logs.
    pub data: DataDirectory,
    /// Follows logs.
    pub watcher: DirectoryWatcher,
    /// The node in numbers.
    pub metrics: Arc<NodeMetrics>,
    /// What `/configz` tells.
    pub settings: Value,
}

impl std::fmt::Debug for EndpointConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EndpointConfig").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The endpoint, listening.
pub struct Endpoint {
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    authorities_file: Option<(PathBuf, ReadFiles, Arc<LenientVerifier>)>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("listener", &self.listener).finish_non_exhaustive()
    }
}

struct Shared {
    authenticator: Authenticator,
    authorizer: Authorizer,
    anonymous_healthz: bool,
    data: DataDirectory,
    watcher: DirectoryWatcher,
    metrics: Arc<NodeMetrics>,
    settings: Value,
}

impl Endpoint {
    /// Takes the port.
    pub async fn listen(config: EndpointConfig) -> Result<Self, EndpointError> {
        let listener = TcpListener::bind(config.address)
            .await
            .map_err(|source| EndpointError::Listen { address: config.address, source })?;
        let authorities = |error: String| EndpointError::Authorities(error);
        let verifier = LenientVerifier::new(&config.client_authorities).map_err(authorities)?;
        let authorities_file = config.client_authorities_file.map(|(file, read)| (file, read, verifier.clone()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| authorities(error.to_string()))?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(config.certificate);
        let shared = Shared {
            authenticator: Authenticator::new(config.client.clone(), verifier),
            authorizer: Authorizer::new(config.client, config.node),
            anonymous_healthz: config.anonymous_healthz,
            data: config.data,
            watcher: config.watcher,
            metrics: config.metrics,
            settings: config.settings,
        };
        Ok(Self { listener, tls: TlsAcceptor::from(Arc::new(tls)), shared: Arc::new(shared), authorities_file })
    }

    /// Serves for ever.
    pub async fn serve(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let _followed = self
            .authorities_file
            .map(|(file, read, verifier)| AbortOnDropHandle::new(tokio::spawn(follow(file, read, verifier))));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: a pause lets some go.
                    tracing::warn!(%error, "the node's endpoint cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (tls, shared) = (self.tls.clone(), self.shared.clone());
            tokio::spawn(async move {
                serve_connection(tls, stream, shared).await;
                drop(place);
            });
        }
    }
}

/// How often the file of authorities is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Takes over what the file of authorities holds when it is changed.
async fn follow(path: PathBuf, mut read: ReadFiles, verifier: Arc<LenientVerifier>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let (file, known) = (path.clone(), read);
        let looked = tokio::task::spawn_blocking(move || {
            if !known.are_changed() {
                return (known, None);
            }
            let read = ReadFiles::new([file.clone()]);
            (read, Some(std::fs::read(file)))
        });
        let Ok((looked_at, content)) = looked.await else { return };
        read = looked_at;
        let Some(content) = content else { continue };
        let authorities = content
            .map_err(|error| error.to_string())
            .and_then(|pem| crate::cluster::certificate::authorities(&pem).map_err(|error| error.to_string()));
        match authorities.and_then(|authorities| verifier.replace(&authorities)) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "the certificate authorities of clients were changed and are read again")
            }
            Err(error) => tracing::error!(
                path = %path.display(),
                "the certificate authorities of clients cannot be read again: {error}; those that were known count on"
            ),
        }
    }
}

async fn serve_connection(tls: TlsAcceptor, stream: TcpStream, shared: Arc<Shared>) {
    let Ok(peer) = stream.peer_addr().map(|address| address.ip().to_canonical()) else { return };
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
    let certificates: Arc<[CertificateDer<'static>]> = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect())
        .unwrap_or_default();
    let service = service_fn(move |request| {
        let (shared, certificates) = (shared.clone(), certificates.clone());
        async move { Ok::<_, Infallible>(answer(&shared, peer, &certificates, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MOST_HEADER_BYTES)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the node's endpoint ended");
    }
}

async fn answer(
    shared: &Shared,
    peer: IpAddr,
    certificates: &[CertificateDer<'static>],
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if shared.anonymous_healthz && path == "/healthz" {
        return text(StatusCode::OK, "ok");
    }
    let user = match shared.authenticator.user(peer, certificates, request.headers()).await {
        Ok(user) => user,
        Err(Refusal::Unknown) => {
            let mut response = text(StatusCode::UNAUTHORIZED, "Unauthorized");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        Err(Refusal::Busy) => {
            let message = "too many requests with tokens that the API server does not know";
            let mut response = text(StatusCode::TOO_MANY_REQUESTS, message);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
        Err(Refusal::Unanswered(message)) => return text(StatusCode::SERVICE_UNAVAILABLE, &message),
    };
    match shared.authorizer.allows(&user, request.method(), &path).await {
        Ok(true) => {}
        Ok(false) => {
            let verb = authorization::verb(request.method());
            let resource = authorization::subresources(&path).join(" or nodes/");
            let message = format!("Forbidden (user={}, verb={verb}, resource=nodes/{resource})", user.name);
            return text(StatusCode::FORBIDDEN, &message);
        }
        Err(message) => return text(StatusCode::SERVICE_UNAVAILABLE, &message),
    }
    let segments: Vec<_> = path.trim_matches('/').split('/').collect();
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    match segments[..] {
        ["healthz"] if is_read => text(StatusCode::OK, "ok"),
        ["pods"] if is_read => pods(shared),
        ["configz"] if is_read => json(&shared.settings),
        ["metrics", ..] if is_read => metrics(shared, path, request.headers()).await,
        ["stats", "summary"] if is_read => summary(shared).await,
        ["containerLogs", namespace, pod, container] if is_read => {
            logs::answer(shared, [namespace, pod, container], request.uri().query().unwrap_or_default())
        }
        ["exec" | "attach" | "portForward" | "run" | "cri", ..] => {
            let what = segments.first().copied().unwrap_or_default();
            let message = format!(
                "{what} is not supported: a WebAssembly guest has no process to attach to, no shell and no network; \
                 kubectl logs and kubectl describe work"
            );
            text(StatusCode::NOT_IMPLEMENTED, &message)
        }
        ["healthz" | "pods" | "configz" | "containerLogs" | "metrics" | "stats", ..] if !is_read => {
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET")
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// A page of metrics, in the format that the client takes.
async fn metrics(shared: &Shared, path: String, headers: &HeaderMap) -> Response<Body> {
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()));
    let metrics = shared.metrics.clone();
    match tokio::task::spawn_blocking(move || metrics.page(path.trim_end_matches('/'), format)).await {
        Ok(Some(page)) => {
            let mut response = Response::new(Full::new(Bytes::from(page)).boxed_unsync());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
            response
        }
        Ok(None) => text(StatusCode::NOT_FOUND, "there is /metrics, /metrics/resource and /metrics/cadvisor"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn summary(shared: &Shared) -> Response<Body> {
    let metrics = shared.metrics.clone();
    match tokio::task::spawn_blocking(move || metrics.summary()).await {
        Ok(summary) => json(&summary),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn pods(shared: &Shared) -> Response<Body> {
    let stored = match shared.data.pods() {
        Ok(stored) => stored,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot list the pods: {error}")),
    };
    let items: Vec<_> = stored
        .into_iter()
        .map(|mut stored| {
            stored.pod.status = Some(stored.status);
            stored.pod
        })
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn json(value: &Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, &value.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A short answer, with a line's end.
fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{message}\n"))).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::authentication::tests::authority;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn authorities_are_those_of_the_file_as_it_is_and_a_broken_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let ((first, of_first), (second, of_second)) = (authority("first"), authority("second"));
        std::fs::write(&file, first.pem()).unwrap();
        let verifier = LenientVerifier::new(&[first.der().to_vec()]).unwrap();
        let task = tokio::spawn(follow(file.clone(), ReadFiles::new([file.clone()]), verifier.clone()));
        let _follow = AbortOnDropHandle::new(task);
        let known = || {
            let name = |certificate: &CertificateDer<'static>| {
                verifier.user(std::slice::from_ref(certificate)).map(|user| user.name)
            };
            [name(&of_first), name(&of_second)].into_iter().flatten().collect::<Vec<_>>()
        };
        let looked_at = || tokio::time::sleep(2 * LOOK);
        looked_at().await;
        assert_eq!(known(), ["first"]);
        std::fs::write(&file, first.pem() + &second.pem()).unwrap();
        looked_at().await;
        assert_eq!(known(), ["first", "second"]);
        for broken in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&file, broken).unwrap();
            looked_at().await;
            assert_eq!(known(), ["first", "second"], "{broken:?}");
        }
        std::fs::remove_file(&file).unwrap();
        looked_at().await;
        assert_eq!(known(), ["first", "second"]);
        std::fs::write(&file, second.pem()).unwrap();
        looked_at().await;
        assert_eq!(known(), ["second"]);
    }
}
