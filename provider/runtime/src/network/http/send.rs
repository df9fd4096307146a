//! One request: where it may go, the connection there, and the answer.

use super::body::BoundedBody;
use super::pace::Paced;
use super::{Rest, Sent, tls};
use crate::network::access::NetworkAccess;
use crate::network::names;
use crate::network::sockets::{CONNECTION, paid};
use crate::network::urls::Certificates;
use ::http::header::HOST;
use ::http::{HeaderValue, Method, Request, Uri};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

/// How long connecting (with TLS), the wait for an answer, and each wait in it may take; a guest may ask for less.
const CONNECT: Duration = Duration::from_secs(10);
const FIRST_BYTE: Duration = Duration::from_secs(60);
const BETWEEN_BYTES: Duration = Duration::from_secs(60);
/// How long a request and its answer may take together.
const WHOLE: Duration = Duration::from_secs(600);
/// Bytes of an answer that are read ahead; its headers are not longer.
const READ_AHEAD: usize = 32 << 10;

/// Sends a request where its guest may. The connection is one of its guest's until the answer has been read.
pub(super) async fn send(
    access: Arc<NetworkAccess>,
    turn: Arc<OwnedSemaphorePermit>,
    request: Request<WasiBody>,
    options: RequestOptions,
) -> Sent {
    let within = |asked: Option<Duration>, most: Duration| asked.unwrap_or(most).min(most);
    let ends = Instant::now() + WHOLE;
    let url = url(&request)?;
    let places = places(&access, &url).await?;
    paid(&access, CONNECTION).await;
    let connect = within(options.connect_timeout, CONNECT);
    let connected = timeout(connect, connect_and_greet(&access, &url, places, request));
    let (mut sender, connection, request) = connected.await.map_err(|_| Error::ConnectionTimeout)??;
    let of_connection = turn.clone();
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        let _turn = of_connection;
        // Also one whose answer nobody reads.
        let _ = timeout_at(ends, connection).await;
    }));
    let first_byte = within(options.first_byte_timeout, FIRST_BYTE);
    let answer = timeout(first_byte, sender.send_request(request)).await.map_err(|_| Error::HttpResponseTimeout)??;
    let between = within(options.between_bytes_timeout, BETWEEN_BYTES);
    let rest: Rest = Box::new(async move {
        let _ = connection.await;
        Ok(())
    });
    Ok((answer.map(|body| BoundedBody::new(body, between, ends, turn).boxed_unsync()), rest))
}

/// The URL of a request, as it is checked and sent.
fn url(request: &Request<WasiBody>) -> Result<Url, Error> {
    // It would make the server a way to anywhere else.
    if request.method() == Method::CONNECT {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let url = Url::parse(&request.uri().to_string()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let is_plain = url.username().is_empty() && url.password().is_none() && url.has_host();
    if is_plain { Ok(url) } else { Err(Error::HttpRequestUriInvalid) }
}

/// The addresses that a URL leads to and that its guest may ask, with what is asked of the servers there.
async fn places(access: &Arc<NetworkAccess>, url: &Url) -> Result<Vec<(SocketAddr, Certificates)>, Error> {
    let denied = |why: &str| {
        // Without the query, which may have secrets.
        let what = format!("request to {}{}", url.origin().ascii_serialization(), url.path());
        access.deny(&what, why);
        Error::HttpRequestDenied
    };
    let addresses = match url.host().ok_or(Error::HttpRequestUriInvalid)? {
        Host::Ipv4(address) => vec![IpAddr::from(address)],
        Host::Ipv6(address) => vec![IpAddr::from(address)],
        Host::Domain(name) => match access.look_up_denied(name) {
            Some(why) => return Err(denied(why)),
            None => {
                names::look_up(name.to_owned(), access.grant.look_ups.clone()).await.map_err(|error| match error {
                    ErrorCode::TemporaryResolverFailure => Error::DnsTimeout,
                    _ => Error::DnsError { rcode: None, info_code: None },
                })?
            }
        },
    };
    let port = url.port_or_known_default().ok_or(Error::HttpRequestUriInvalid)?;
    let (mut places, mut why) = (Vec::new(), None);
    for address in addresses {
        let place = SocketAddr::new(address, port);
        match access.may_request(url, place) {
            Ok(certificates) => places.push((place, certificates)),
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    match why {
        Some(why) if places.is_empty() => Err(denied(why)),
        None if places.is_empty() => Err(Error::DestinationNotFound),
        _ => Ok(places),
    }
}

type Connection =
    (http1::SendRequest<WasiBody>, http1::Connection<TokioIo<Box<dyn Stream>>, WasiBody>, Request<WasiBody>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the first address that takes it, and readies the request for it.
async fn connect_and_greet(
    access: &Arc<NetworkAccess>,
    url: &Url,
    places: Vec<(SocketAddr, Certificates)>,
    mut request: Request<WasiBody>,
) -> Result<Connection, Error> {
    let mut failed = io::Error::from(ErrorKind::AddrNotAvailable);
    let mut connected = None;
    for (place, certificates) in places {
        match TcpStream::connect(place).await {
            Ok(stream) => {
                connected = Some((stream, certificates));
                break;
            }
            Err(error) => failed = error,
        }
    }
    let (stream, certificates) = connected.ok_or(Error::Connect(failed))?;
    let stream = Paced::new(stream, access.clone());
    let stream: Box<dyn Stream> = match url.scheme() {
        "https" => {
            let connector = tls::connector(certificates).await.ok_or(Error::TlsCertificateError)?;
            Box::new(connector.connect(server_name(url)?, stream).await.map_err(Error::Tls)?)
        }
        _ => Box::new(stream),
    };
    *request.uri_mut() = path_and_query(url)?;
    request.headers_mut().insert(HOST, host(url)?);
    let (sender, connection) = http1::Builder::new().max_buf_size(READ_AHEAD).handshake(TokioIo::new(stream)).await?;
    Ok((sender, connection, request))
}

fn server_name(url: &Url) -> Result<ServerName<'static>, Error> {
    match url.host().ok_or(Error::HttpRequestUriInvalid)? {
        Host::Ipv4(address) => Ok(IpAddr::from(address).into()),
        Host::Ipv6(address) => Ok(IpAddr::from(address).into()),
        Host::Domain(name) => {
            ServerName::try_from(name.trim_end_matches('.').to_owned()).map_err(|_| Error::HttpRequestUriInvalid)
        }
    }
}

fn path_and_query(url: &Url) -> Result<Uri, Error> {
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{query}", url.path()).parse().map_err(|_| Error::HttpRequestUriInvalid)
}

fn host(url: &Url) -> Result<HeaderValue, Error> {
    // With a dot at its end a server may take it for another one.
    let name = url.host_str().ok_or(Error::HttpRequestUriInvalid)?.trim_end_matches('.');
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    HeaderValue::from_str(&format!("{name}{port}")).map_err(|_| Error::HttpRequestUriInvalid)
}
