//! What a probe asks the container, once.

use crate::fields::NodeFacts;
use akri_krustlet_host::{Untrusted, one_line};
use akri_krustlet_runtime::network::NetworkRules;
use akri_krustlet_runtime::network::rules::Protocol;
use hyper::rt::Executor;
use k8s_openapi::api::core::v1::{Container, Probe as ApiProbe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;
use std::sync::OnceLock;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// How far a redirect may lead, to the same port of the same host.
const MOST_REDIRECTS: usize = 10;
/// Longest name of a gRPC service, in bytes.
const MOST_SERVICE: usize = 256;
/// Letters of an error's text, which may be the container's words.
const MOST_TEXT: usize = 200;
/// An answer is one number.
const MOST_OF_AN_ANSWER: usize = 1024;
/// How a probe calls itself.
const USER_AGENT: &str = concat!("kube-probe/akri-krustlet-", env!("CARGO_PKG_VERSION"));

#[derive(Debug, PartialEq)]
pub(super) enum Check {
    /// A connection can be made.
    Tcp(String, u16),
    /// A GET is answered by a status from 200 to 399.
    Http { url: reqwest::Url, headers: Vec<(String, String)> },
    /// grpc.health.v1 says that the service is serving; without a name, the server as a whole.
    Grpc { host: String, port: u16, service: String },
}

impl Check {
    pub(super) fn read(
        probe: &ApiProbe,
        container: &Container,
        node: &NodeFacts,
        rules: &NetworkRules,
    ) -> Result<Self, String> {
        let port = |named| port(named, container, rules);
        match (&probe.tcp_socket, &probe.http_get, &probe.grpc) {
            (Some(tcp), None, None) => Ok(Self::Tcp(host(tcp.host.as_deref(), node)?, port(&tcp.port)?)),
            (None, Some(http), None) => {
                let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
                if !["http", "https"].contains(&scheme.as_str()) {
                    return Err(format!("httpGet.scheme {scheme:?}: expected HTTP or HTTPS"));
                }
                let (host, port) = (in_url(host(http.host.as_deref(), node)?), port(&http.port)?);
                let path = http.path.as_deref().unwrap_or_default();
                let url = format!("{scheme}://{host}:{port}/{}", path.strip_prefix('/').unwrap_or(path));
                let url = reqwest::Url::parse(&url).map_err(|error| format!("httpGet.path {path:?}: {error}"))?;
                let headers = http.http_headers.iter().flatten();
                let headers = headers.map(|header| (header.name.clone(), header.value.clone())).collect();
                Ok(Self::Http { url, headers })
            }
            (None, None, Some(grpc)) => {
                let service = grpc.service.clone().unwrap_or_default();
                if service.len() > MOST_SERVICE {
                    return Err(format!("grpc.service has {} bytes, {MOST_SERVICE} are possible", service.len()));
                }
                Ok(Self::Grpc { host: node.address(), port: port(&IntOrString::Int(grpc.port))?, service })
            }
            _ => Err("expected one of tcpSocket, httpGet and grpc".to_owned()),
        }
    }

    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(_, port) | Self::Grpc { port, .. } => Some(*port),
            Self::Http { url, .. } => url.port_or_known_default(),
        }
    }

    /// Asks. An error says what came instead, in one line.
    pub(super) async fn attempt(&self) -> Result<(), String> {
        let result = match self {
            Self::Tcp(host, port) => {
                let connected = tokio::net::TcpStream::connect((host.as_str(), *port)).await;
                connected.map(drop).map_err(|error| format!("no connection to {host}:{port}: {error}"))
            }
            Self::Http { url, headers } => get(url, headers).await,
            Self::Grpc { host, port, service } => is_serving(host, *port, service).await,
        };
        result.map_err(|text| one_line(&text, MOST_TEXT))
    }
}

/// Where the container is: on this machine, and nowhere else.
fn host(host: Option<&str>, node: &NodeFacts) -> Result<String, String> {
    let host = host.unwrap_or_default();
    if host.is_empty() {
        return Ok(node.address());
    }
    let address = host.parse::<IpAddr>();
    let is_own = |own: &String| own.parse::<IpAddr>().is_ok_and(|own| address.as_ref() == Ok(&own));
    let is_loopback = host == "localhost" || address.as_ref().is_ok_and(IpAddr::is_loopback);
    if is_loopback || node.addresses.iter().any(is_own) {
        return Ok(host.to_owned());
    }
    Err(format!("host {host:?} is not this node: a probe asks the container itself; leave the host out"))
}

/// IPv6 in brackets.
fn in_url(host: String) -> String {
    if host.contains(':') { format!("[{host}]") } else { host }
}

fn port(port: &IntOrString, container: &Container, rules: &NetworkRules) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            named.ok_or_else(|| format!("port {name:?}: the container has no port of this name"))?.container_port
        }
    };
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| format!("port {number}: expected 1 to 65535"))?;
    if !rules.give_listening(Protocol::Tcp, Some(port)) {
        return Err(format!("port {port}: the container may not listen on it; list it among its ports"));
    }
    Ok(port)
}

async fn get(url: &reqwest::Url, headers: &[(String, String)]) -> Result<(), String> {
    let mut request = client()?.get(url.clone());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let status = match request.send().await {
        Ok(answer) => answer.status(),
        Err(error) => return Err(format!("GET {url}: {}", cause(&error))),
    };
    // A redirect to elsewhere is an answer, too.
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("GET {url}: status {}", status.as_u16()))
}

/// What an error comes from in the end.
fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a dyn std::error::Error {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

/// What a connection does in the background, until that is cancelled.
struct Background(CancellationToken);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Background {
    fn execute(&self, future: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(future));
    }
}

async fn is_serving(host: &str, port: u16, service: &str) -> Result<(), String> {
    let place = format!("{}:{port}", in_url(host.to_owned()));
    let server = Endpoint::from_shared(format!("http://{place}")).and_then(|server| server.user_agent(USER_AGENT));
    let server = server.map_err(|error| format!("cannot ask {place}: {error}"))?;
    let end = CancellationToken::new();
    let background = Background(end.clone());
    let _end = end.drop_guard();
    let channel = server.executor(background).connect().await;
    let channel = channel.map_err(|error| format!("no connection to {place}: {}", cause(&error)))?;
    let mut client = HealthClient::new(Untrusted::new(channel)).max_decoding_message_size(MOST_OF_AN_ANSWER);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
    let of = if service.is_empty() { String::new() } else { format!(" of service {service:?}") };
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(format!("grpc.health.v1 at {place}: status{of} {}", other.as_str_name())),
        Err(error) => Err(format!("grpc.health.v1 at {place}: {:?}{of}: {}", error.code(), error.message())),
    }
}

/// As a kubelet asks: certificates are not checked, since they are of whatever name the service has.
fn client() -> Result<&'static reqwest::Client, String> {
    static CLIENT: OnceLock<Result<reqwest::Client, String>> = OnceLock::new();
    // What else is on this machine is not for a guest to have asked.
    let same_place = |attempt: reqwest::redirect::Attempt<'_>| {
        let place = |url: &reqwest::Url| {
            (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default())
        };
        let is_same = attempt.previous().first().is_some_and(|first| place(first) == place(attempt.url()));
        match attempt.previous().len() {
            _ if !is_same => attempt.stop(),
            0..=MOST_REDIRECTS => attempt.follow(),
            _ => attempt.error(format!("stopped after {MOST_REDIRECTS} redirects")),
        }
    };
    let make = || {
        let client = reqwest::Client::builder()
            .danger_accept_invalid_certs(true)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::custom(same_place))
            .user_agent(USER_AGENT)
            .build();
        client.map_err(|error| format!("cannot ask: {error}"))
    };
    CLIENT.get_or_init(make).as_ref().map_err(String::clone)
}
