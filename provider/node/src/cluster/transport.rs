//! How requests travel to the API server: one HTTP/2 connection for all of them and all watches, by a proxy if the kubeconfig or
//! the environment names one.
//!
//! # Guarantees
//! - A connection that goes silently dead is noticed within 20 s: it is asked for a sign of life when nothing comes, and whatever
//!   waits on it fails then and is tried again on a new one.

use akri_krustlet_metrics::counted;
use http::HeaderValue;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config, Error};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tower::layer::layer_fn;
use tower::retry::RetryLayer;
use tower::{Service, ServiceBuilder};

/// Longest time for a TCP connection to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing came for so long is asked for a sign of life, and is dead if none comes for so long.
const QUIET: Duration = Duration::from_secs(10);
const DEAD: Duration = Duration::from_secs(10);
/// What may be on its way on one watch, and on all of them together, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A client for a kubeconfig's cluster and user. Nothing is sent.
pub(super) fn client(config: Config) -> Result<Client, Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    // For a server that speaks no HTTP/2; a proxy on the way may answer these for a peer that is gone.
    tcp.set_keepalive(Some(QUIET));
    tcp.set_keepalive_interval(Some(QUIET / 2));
    tcp.set_keepalive_retries(Some(2));
    tcp.set_tcp_user_timeout(Some(QUIET + DEAD));
    let Some(proxy) = config.proxy_url.clone() else { return through(tcp, &config) };
    if proxy.scheme_str() != Some("http") {
        return Err(Error::ProxyProtocolUnsupported { proxy_url: Box::new(proxy) });
    }
    let mut tunnel = Tunnel::new(proxy.clone(), tcp);
    if let Some(credentials) = proxy_credentials(&proxy) {
        tunnel = tunnel.with_auth(credentials);
    }
    through(tunnel, &config)
}

/// User and password in a proxy's URL, as they are sent to it.
fn proxy_credentials(proxy: &http::Uri) -> Option<HeaderValue> {
    use base64::Engine as _;
    let (user, _) = proxy.authority()?.as_str().rsplit_once('@')?;
    let decoded = percent_encoding::percent_decode_str(user).collect::<Vec<u8>>();
    let mut value =
        HeaderValue::from_str(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(decoded))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn through<C>(connector: C, config: &Config) -> Result<Client, Error>
where
    C: tower::Service<http::Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<tower::BoxError>,
{
    let mut tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(|error| Error::Service(Box::new(error)))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(QUIET)
        .http2_keep_alive_timeout(DEAD)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build::<_, Body>(tls.enable_all_versions().wrap_connector(connector));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(layer_fn(Counted))
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Counts requests and what became of them.
#[derive(Clone, Debug)]
struct Counted<S>(S);

impl<S, B, R> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send,
    R: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.method().clone();
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().map_or("<error>".to_owned(), |answer| answer.status().as_u16().to_string());
            counted().api_requests.add([method.as_str(), &code]);
            answer
        })
    }
}
