//! The way to the API server, whose certificate may be exchanged while it is used.

use super::certificate::Certificate;
use akri_krustlet_host::file::ReadFiles;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::api::ObjectMeta;
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use kube::{Client, Config};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;

/// Why the API server cannot be spoken to at all. That it does not answer is no such error.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The file is missing, or no usable kubeconfig.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The certificates or keys in it cannot be used.
    #[error("kubeconfig {}: {source}", path.display())]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Longest time until an answer begins.
const ANSWER: Duration = Duration::from_secs(30);

/// How long a start waits for an answer that it can do without: the pods that the node remembers are to run at once.
pub const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// A connection. All that speak to the API server have [`Connection::client`], which goes on working when the node's
/// certificate is renewed.
pub struct Connection {
    path: PathBuf,
    config: Config,
    current: watch::Sender<Client>,
    client: Client,
    /// The files that its user was read from; none if the user is another one.
    files: Mutex<Option<ReadFiles>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.config.cluster_url).finish_non_exhaustive()
    }
}

impl Connection {
    /// A client with the service account of the pod that this process runs in, or with the kubeconfig that `KUBECONFIG` names.
    /// Nothing is sent.
    pub async fn client_of_environment() -> Result<Client, String> {
        let config = if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            Config::incluster().map_err(|error| format!("the pod's service account: {error}"))?
        } else {
            let options = KubeConfigOptions::default();
            Config::from_kubeconfig(&options).await.map_err(|error| format!("KUBECONFIG: {error}"))?
        };
        super::transport::client(config).map_err(|error| error.to_string())
    }

    /// The cluster and the user of a kubeconfig's current context.
    pub async fn from_kubeconfig(path: &Path) -> Result<Self, ConnectionError> {
        let failed = |source| ConnectionError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
        // Before they are read: what is changed meanwhile is read again.
        let of_thread = path.to_owned();
        let files = look(move || files_of(&of_thread)).await;
        let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
        Ok(Self { files: Mutex::new(files), ..Self::new(path, config)? })
    }

    fn new(path: &Path, config: Config) -> Result<Self, ConnectionError> {
        let first = client_of(path, config.clone())?;
        let (current, receiver) = watch::channel(first);
        let service = CurrentClient { current: receiver, clock: Arc::default() };
        let client = Client::new(service, config.default_namespace.clone());
        Ok(Self { path: path.to_owned(), config, current, client, files: Mutex::default() })
    }

    /// The same cluster, with this certificate instead of the kubeconfig's user.
    pub fn with_identity(&self, certificate: &Certificate) -> Result<Self, ConnectionError> {
        Self::new(&self.path, with_identity(self.config.clone(), certificate))
    }

    /// From now on, requests are made with this certificate, on new connections: the API server looks at the certificate of a
    /// connection with every request. Watches that run go on until they end by themselves.
    pub fn replace_identity(&self, certificate: &Certificate) -> Result<(), ConnectionError> {
        let config = with_identity(self.config.clone(), certificate);
        self.current.send_replace(client_of(&self.path, config)?);
        Ok(())
    }

    /// Follows the kubeconfig and the certificates, keys and tokens that it names: from when they are changed, requests are made
    /// with what they hold then. For a user that somebody else renews. Never ends.
    pub async fn follow_files(&self) {
        let mut read = self.files.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(files) = read.take() else { return };
            let path = self.path.clone();
            let (changed, files) = match look(move || (files.are_changed(), files)).await {
                Some(looked) => looked,
                None => return,
            };
            if !changed {
                read = Some(files);
                continue;
            }
            read = look(move || files_of(&path)).await;
            match self.again().await {
                Ok(()) => {
                    tracing::info!(kubeconfig = %self.path.display(), "the node's credentials were changed and are read again")
                }
                Err(error) => tracing::error!("{error}; the node goes on with the credentials that it has"),
            }
        }
    }

    async fn again(&self) -> Result<(), ConnectionError> {
        let failed = |source| ConnectionError::Kubeconfig { path: self.path.clone(), source: Box::new(source) };
        let kubeconfig = Kubeconfig::read_from(&self.path).map_err(failed)?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?;
        // A cluster elsewhere is another cluster, for which the node has to be started again.
        config.cluster_url = self.config.cluster_url.clone();
        self.current.send_replace(client_of(&self.path, config)?);
        Ok(())
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Host and port of the API server.
    pub fn server(&self) -> (String, u16) {
        let uri = &self.config.cluster_url;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        (host, uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 }))
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        self.config.cluster_url.to_string()
    }

    /// How the kubeconfig wants the API server's certificate to be checked: not at all, or for another name.
    pub fn checks(&self) -> (bool, Option<&str>) {
        (self.config.accept_invalid_certs, self.config.tls_server_name.as_deref())
    }

    /// The proxy on the way.
    pub fn proxy(&self) -> Option<String> {
        self.config.proxy_url.as_ref().map(ToString::to_string)
    }

    /// The cluster's certificate authorities, DER.
    pub fn authorities(&self) -> Vec<Vec<u8>> {
        self.config.root_cert.clone().unwrap_or_default()
    }
}

/// How often the files of a kubeconfig are looked at.
const LOOK: Duration = Duration::from_secs(10);

async fn look<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// The kubeconfig and the files that it names.
fn files_of(path: &Path) -> ReadFiles {
    let mut paths = vec![path.to_owned()];
    // Paths in it are made absolute when it is read.
    if let Ok(kubeconfig) = Kubeconfig::read_from(path) {
        for user in kubeconfig.auth_infos.into_iter().filter_map(|user| user.auth_info) {
            let files = [user.client_certificate, user.client_key, user.token_file];
            paths.extend(files.into_iter().flatten().map(PathBuf::from));
        }
        let clusters = kubeconfig.clusters.into_iter().filter_map(|cluster| cluster.cluster);
        paths.extend(clusters.filter_map(|cluster| cluster.certificate_authority).map(PathBuf::from));
    }
    ReadFiles::new(paths)
}

fn with_identity(mut config: Config, certificate: &Certificate) -> Config {
    config.auth_info = AuthInfo {
        client_certificate_data: Some(STANDARD.encode(certificate.chain())),
        client_key_data: Some(STANDARD.encode(certificate.key()).into()),
        ..AuthInfo::default()
    };
    config
}

fn client_of(path: &Path, config: Config) -> Result<Client, ConnectionError> {
    // kube installs it when it makes a client itself; whoever has installed one has it already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    super::transport::client(config)
        .map_err(|source| ConnectionError::Client { path: path.to_owned(), source: Box::new(source) })
}

/// Hands each request to the client of the moment.
#[derive(Clone)]
struct CurrentClient {
    current: watch::Receiver<Client>,
    clock: Arc<ClockCheck>,
}

/// Compares this machine's clock with the API server's, and tells when they begin to differ.
#[derive(Debug, Default)]
struct ClockCheck {
    differs: AtomicBool,
}

/// Clocks that differ by more are told of. Certificates are good for five minutes before they are made, leases for 40 s.
const DIFFERENCE: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

impl ClockCheck {
    fn check(&self, response: &Response<Body>) {
        let Some(date) = response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()) else { return };
        let difference = difference(date, jiff::Timestamp::now());
        let differs = difference.is_some();
        if self.differs.swap(differs, Ordering::Relaxed) == differs {
            return;
        }
        match difference {
            Some(difference) => tracing::warn!(
                "this machine's clock is {difference} the API server's: certificates, tokens and leases will fail; set it, and keep it right by NTP"
            ),
            None => tracing::info!("this machine's clock is right again"),
        }
    }
}

/// How far `now` is from the date of an answer, in words, if it matters.
fn difference(date: &str, now: jiff::Timestamp) -> Option<String> {
    let server = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    let ahead = now.duration_since(server);
    if ahead.abs() <= DIFFERENCE {
        return None;
    }
    let side = if ahead.is_negative() { "behind" } else { "ahead of" };
    Some(format!("{} s {side}", ahead.abs().as_secs()))
}

impl tower::Service<Request<Body>> for CurrentClient {
    type Response = Response<Body>;
    type Error = tower::BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (client, clock) = (self.current.borrow().clone(), self.clock.clone());
        async move {
            match tokio::time::timeout(ANSWER, client.send(request)).await {
                Ok(answer) => {
                    let answer = answer?;
                    clock.check(&answer);
                    Ok(answer)
                }
                Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs()).into()),
            }
        }
        .boxed()
    }
}

/// Longest pause before a watch that failed is tried again: what changed in an outage is to be caught up soon after it.
const LONGEST_WATCH_PAUSE: Duration = Duration::from_secs(5);

/// The pauses of a watch that fails.
pub struct WatchBackoff(DefaultBackoff);

/// Pauses as client-go's, up to 5 s.
pub fn watch_back_off() -> WatchBackoff {
    WatchBackoff(DefaultBackoff::default())
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST_WATCH_PAUSE))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// The version of an object. Versions of one object can be compared as numbers.
pub fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_ref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// An error of the API in one line, with the causes that its own text leaves out.
pub fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let hint = match text.as_str() {
        text if text.contains("UnknownIssuer") || text.contains("BadSignature") => {
            "; the certificate-authority in the kubeconfig is not the one that signed the API server's certificate"
        }
        text if text.contains("NotValidForName") => {
            "; the API server's certificate is for other names: use one of them in the kubeconfig, or set tls-server-name"
        }
        text if ["CertificateExpired", "certificate expired", "NotValidYet", "not valid yet"]
            .iter()
            .any(|what| text.contains(what)) =>
        {
            "; is this machine's clock right?"
        }
        _ => "",
    };
    text + hint
}

/// The HTTP code of an API error.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_wrong_is_told_with_how_far() {
        let now: jiff::Timestamp = "2026-11-24T13:50:00Z".parse().unwrap();
        for (date, expected) in [
            ("Tue, 24 Nov 2026 13:50:30 GMT", None),
            ("Tue, 24 Nov 2026 13:49:10 GMT", None),
            ("Tue, 24 Nov 2026 14:00:00 GMT", Some("600 s behind")),
            ("Tue, 24 Nov 2026 13:40:00 GMT", Some("600 s ahead of")),
            ("yesterday", None),
        ] {
            assert_eq!(difference(date, now).as_deref(), expected, "{date}");
        }
    }
}
