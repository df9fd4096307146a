//! What a node tells this machine: plain HTTP on a loopback port or a Unix socket. Metrics, for a node without an HTTPS endpoint; what
//! it is at, for `top` and as a web page.
//!
//! # Guarantees
//! - Nobody but this machine's processes reaches it; a web page that a browser of this machine shows does not, since its requests
//!   name another host.
//! - Connections and what they send are bounded.
//! - Nothing can be changed here. What handlers are asked, the devices that they found and logs are told only where [`Pages`] say so: a
//!   loopback port is everybody's who works on this machine, a socket in the data directory is the node's user's.

use super::NodeMetrics;
use crate::container_log::LogRequest;
use akri_krustlet_host::socket::{SocketError, SocketFile};
use akri_krustlet_metrics::Format;
use akri_krustlet_runtime::log::LogOptions;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Connections at once; more wait.
const CONNECTIONS: usize = 16;
/// Time for a request's headers, and their size.
const HEADERS: Duration = Duration::from_secs(10);
const MOST_HEADER_BYTES: usize = 16 << 10;
/// Time for a request and its answer; a connection has one.
const REQUEST: Duration = Duration::from_secs(30);

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A port of a loopback address.
    Loopback(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("the path of a socket must be absolute: unix:/run/akri-krustlet/metrics.sock".to_owned())
            };
        }
        let address: SocketAddr =
            text.parse().map_err(|_| "expected ADDRESS:PORT, such as 127.0.0.1:9464, or unix:/PATH".to_owned())?;
        if address.ip().is_loopback() {
            Ok(Self::Loopback(address))
        } else {
            Err(format!(
                "{} is not an address of this machine alone; metrics are served without asking who reads them: choose 127.0.0.1 or [::1], or unix:/PATH",
                address.ip()
            ))
        }
    }
}

/// What is served besides metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// `/overview` and `/logs/..`.
    pub overview: bool,
    /// The web page of them.
    pub web: bool,
}

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsServerError {
    /// The port is not to be had.
    #[error("metrics cannot be served at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The socket is not.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Serves the metrics of a node, listening.
#[derive(Debug)]
pub struct MetricsServer {
    listener: Listener,
    metrics: Arc<NodeMetrics>,
    pages: Pages,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    /// The file goes with it.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

impl MetricsServer {
    /// Takes the address. A socket that a process left behind is replaced; the new one is for its owner and group.
    pub async fn listen(
        address: &MetricsAddress,
        metrics: Arc<NodeMetrics>,
        pages: Pages,
    ) -> Result<Self, MetricsServerError> {
        let listener = match address {
            MetricsAddress::Loopback(address) => TcpListener::bind(address)
                .await
                .map(Listener::Tcp)
                .map_err(|source| MetricsServerError::Listen { address: *address, source })?,
            MetricsAddress::Unix(path) => {
                let (listener, file) = akri_krustlet_host::socket::listen(path)?;
                Listener::Unix { listener, _file: file }
            }
        };
        Ok(Self { listener, metrics, pages })
    }

    /// Serves for ever.
    pub async fn serve(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (metrics, pages) = (self.metrics.clone(), self.pages);
            let accepted = match &self.listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        serve_connection(stream, metrics, pages, false).await;
                        drop(place);
                    });
                }),
                Listener::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        serve_connection(stream, metrics, pages, true).await;
                        drop(place);
                    });
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "a connection for metrics cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    metrics: Arc<NodeMetrics>,
    pages: Pages,
    any_host: bool,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let metrics = metrics.clone();
        async move { Ok::<_, Infallible>(answer(metrics, pages, &request, any_host).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MOST_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Also for a client that does not read.
    match tokio::time::timeout(REQUEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics ended"),
        Err(_) => tracing::debug!("a client for metrics was too slow"),
    }
}

async fn answer(
    metrics: Arc<NodeMetrics>,
    pages: Pages,
    request: &Request<Incoming>,
    any_host: bool,
) -> Response<Full<Bytes>> {
    if !any_host && !is_this_machine(request.headers().get(header::HOST)) {
        return text(
            StatusCode::MISDIRECTED_REQUEST,
            "text/plain",
            "ask by the name of this machine: localhost\n".to_owned(),
        );
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned());
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let (path, format) = (request.uri().path().to_owned(), Format::accepted(accept));
    if let Some(file) = WEB.iter().find(|file| pages.web && file.path == path) {
        return web_file(file);
    }
    if let Some(rest) = path.strip_prefix("/logs/").filter(|_| pages.overview) {
        return log(&metrics, rest).await;
    }
    let made = tokio::task::spawn_blocking(move || match path.as_str() {
        "/healthz" => Some(("text/plain", "ok\n".to_owned())),
        "/overview" if pages.overview => {
            serde_json::to_string(&metrics.overview()).ok().map(|text| ("application/json", text))
        }
        "/stats/summary" => Some(("application/json", metrics.summary().to_string())),
        path => metrics.page(path, format).map(|page| (format.content_type(), page)),
    });
    match made.await {
        Ok(Some((kind, page))) => text(StatusCode::OK, kind, page),
        Ok(None) => text(
            StatusCode::NOT_FOUND,
            "text/plain",
            "there is /metrics, /metrics/resource, /metrics/cadvisor, /stats/summary and /healthz\n".to_owned(),
        ),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    }
}

/// A file of the web page.
struct WebFile {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

const WEB: [WebFile; 3] = [
    WebFile { path: "/", kind: "text/html; charset=utf-8", content: include_str!("web/page.html") },
    WebFile { path: "/page.js", kind: "text/javascript; charset=utf-8", content: include_str!("web/page.js") },
    WebFile { path: "/page.css", kind: "text/css; charset=utf-8", content: include_str!("web/page.css") },
];

/// The page runs its own script, asks this server, and nothing else; nobody puts it into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

fn web_file(file: &WebFile) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, file.kind, file.content.to_owned());
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-frame-options", "DENY"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The log of `NAMESPACE/POD/CONTAINER`.
async fn log(metrics: &NodeMetrics, path: &str) -> Response<Full<Bytes>> {
    let [namespace, pod, container] = path.split('/').collect::<Vec<_>>()[..] else {
        return text(StatusCode::NOT_FOUND, "text/plain", "/logs/NAMESPACE/POD/CONTAINER\n".to_owned());
    };
    let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
    let options = LogOptions::default();
    let request = LogRequest { namespace, pod, container, previous: false, follow: false, options };
    match metrics.log(request).await {
        Ok(lines) => text(StatusCode::OK, "text/plain; charset=utf-8", lines),
        Err(error) => text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", format!("{error}\n")),
    }
}

fn is_this_machine(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn text(status: StatusCode, kind: &str, content: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(content)));
    *response.status_mut() = status;
    if let Ok(kind) = HeaderValue::from_str(kind) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_this_machine_alone() {
        assert_eq!("127.0.0.1:9464".parse(), Ok(MetricsAddress::Loopback(([127, 0, 0, 1], 9464).into())));
        assert!("[::1]:9464".parse::<MetricsAddress>().is_ok());
        assert_eq!("unix:/run/m.sock".parse(), Ok(MetricsAddress::Unix("/run/m.sock".into())));
        for (wrong, words) in [
            ("0.0.0.0:9464", "choose 127.0.0.1"),
            ("192.0.2.1:1", "choose 127.0.0.1"),
            ("unix:m.sock", "must be absolute"),
            ("9464", "expected ADDRESS:PORT"),
        ] {
            assert!(wrong.parse::<MetricsAddress>().unwrap_err().contains(words), "{wrong}");
        }
    }

    #[test]
    fn requests_for_other_hosts_are_none_of_this_machines() {
        let is = |host: &'static str| is_this_machine(Some(&HeaderValue::from_static(host)));
        assert!(["localhost:9464", "127.0.0.1", "127.0.0.1:9464", "[::1]:9464"].into_iter().all(is));
        assert!(!["evil.example", "evil.example:9464", "192.0.2.1", "127.0.0.1.evil.example", ""].into_iter().any(is));
        assert!(!is_this_machine(None));
    }
}
