//! Requests by HTTP, many at once. Need a rule `http` in the pod's annotation `akri-krustlet/network`; TLS is the node's.
//!
//! ```no_run
//! use akri_handler::http::Call;
//!
//! let answer = Call::get("https://inventory.plant.example/devices").header("accept", "application/json").send()?;
//! assert_eq!(answer.status, 200);
//! # Ok::<(), akri_handler::http::Error>(())
//! ```

use std::fmt;
use std::time::Duration;

/// Largest body of a request, in bytes.
pub const MOST_SENT: usize = 16 << 10;
/// Longest headers of a request, all together, in bytes.
pub const MOST_HEADERS: usize = 12 << 10;
/// Requests that are under way at once; more wait for their turn.
pub const AT_ONCE: usize = 24;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `POST` and so on.
    pub method: String,
    /// With scheme and host. A fragment is not sent.
    pub url: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// What is sent; at most [`MOST_SENT`] bytes.
    pub body: Vec<u8>,
    /// How long all of it may take; 5 s by default.
    pub timeout: Duration,
    /// Largest answer, in bytes; 1 MiB by default.
    pub most: usize,
    /// Whether a larger one is cut off there, and not an error.
    pub cut: bool,
}

impl Call {
    /// Asks for what is there.
    pub fn get(url: impl Into<String>) -> Self {
        Self {
            method: "GET".to_owned(),
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout: Duration::from_secs(5),
            most: 1 << 20,
            cut: false,
        }
    }

    /// Sends something.
    pub fn post(url: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { method: "POST".to_owned(), body: body.into(), ..Self::get(url) }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Within that time.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// With an answer of so many bytes at most.
    #[must_use]
    pub fn most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// With so many bytes of an answer at most; the rest is not read.
    #[must_use]
    pub fn cut(self, most: usize) -> Self {
        Self { most, cut: true, ..self }
    }

    /// The request that an answer sends this one on to, if it does. Another server gets no headers but those about what is accepted.
    pub fn redirected(&self, answer: &Answer) -> Option<Self> {
        let is_asked = matches!(self.method.as_str(), "GET" | "HEAD");
        let location =
            answer.header("location").filter(|_| is_asked && matches!(answer.status, 301..=303 | 307 | 308))?;
        let (is_tls, authority, path) = parts(&self.url)?;
        let scheme = if is_tls { "https" } else { "http" };
        let directory = || {
            let path = path.split('?').next().unwrap_or_default();
            path.rsplit_once('/').map_or("", |(directory, _)| directory)
        };
        let url = match location {
            absolute if has_scheme(absolute) => absolute.to_owned(),
            host if host.starts_with("//") => format!("{scheme}:{host}"),
            path if path.starts_with('/') => format!("{scheme}://{authority}{path}"),
            query if query.starts_with('?') => {
                format!("{scheme}://{authority}{}{query}", path.split('?').next().unwrap_or_default())
            }
            name => format!("{scheme}://{authority}{}/{name}", directory()),
        };
        let stays = parts(&url).is_some_and(|(tls, to, _)| tls == is_tls && to.eq_ignore_ascii_case(authority));
        let mut next = Self { url, ..self.clone() };
        next.headers.retain(|(name, _)| stays || name.to_ascii_lowercase().starts_with("accept"));
        Some(next)
    }

    /// Waits for the answer.
    pub fn send(self) -> Result<Answer, Error> {
        send_all(vec![self])
            .pop()
            .unwrap_or(Err(Error { url: String::new(), kind: ErrorKind::Failed("no request".to_owned()) }))
    }
}

/// An answer, whatever its status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// As `200`.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// What was sent.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What was asked, without what may be secret in it.
    pub url: String,
    /// What became of it.
    pub kind: ErrorKind,
}

/// What became of a request without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The URL cannot be read.
    Url,
    /// The pod does not grant it.
    Denied,
    /// It took too long.
    Timeout,
    /// The request or the answer is too long.
    TooLong,
    /// The server, or the way to it, failed.
    Failed(String),
}

impl Error {
    pub(crate) fn new(url: &str, kind: ErrorKind) -> Self {
        Self { url: without_secrets(url), kind }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.url)?;
        match &self.kind {
            ErrorKind::Url => f.write_str("it is no URL of http or https"),
            ErrorKind::Denied => f.write_str(
                "the pod does not grant it (rule `http` in annotation akri-krustlet/network; the container's log says more)",
            ),
            ErrorKind::Timeout => f.write_str("no answer in time"),
            ErrorKind::TooLong => f.write_str("it is too long"),
            ErrorKind::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        match error.kind {
            ErrorKind::Url => Self::InvalidDetails(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// Sends requests, [`AT_ONCE`] of them at once, and waits for all answers; they are in the requests' order. The time of each counts
/// from its turn.
pub fn send_all(calls: Vec<Call>) -> Vec<Result<Answer, Error>> {
    inner::send_all(calls)
}

/// The parts of a URL that a request has: whether by TLS, the authority, the path with its query.
pub(crate) fn parts(url: &str) -> Option<(bool, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let is_tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let rest = rest.split('#').next()?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    (!authority.is_empty() && !authority.contains('@')).then_some((is_tls, authority, path))
}

/// Whether a text is a URL of its own, and no path.
fn has_scheme(text: &str) -> bool {
    let scheme = text.split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| {
        scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// A URL without its user and its query, which may be secret.
pub fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}

#[cfg(target_family = "wasm")]
mod inner {
    use super::{AT_ONCE, Answer, Call, Error, ErrorKind, MOST_HEADERS, MOST_SENT, parts};
    use crate::wait::{self, Left};
    use wasip2::http::outgoing_handler;
    use wasip2::http::types::{
        ErrorCode, Fields, FutureIncomingResponse, IncomingBody, Method, OutgoingBody, OutgoingRequest, RequestOptions,
        Scheme,
    };
    use wasip2::io::poll::Pollable;
    use wasip2::io::streams::{InputStream, StreamError};

    enum State {
        Asked(FutureIncomingResponse),
        Read(Answer, Body),
    }

    // In the order in which they are dropped: the stream is the body's.
    struct Body {
        stream: InputStream,
        _body: IncomingBody,
    }

    struct Open {
        at: usize,
        call: Call,
        left: Left,
        state: State,
    }

    impl Open {
        fn pollable(&self) -> Pollable {
            match &self.state {
                State::Asked(answer) => answer.subscribe(),
                State::Read(_, body) => body.stream.subscribe(),
            }
        }

        /// Goes on as far as it can without waiting.
        fn go_on(self) -> Result<Self, Result<Answer, ErrorKind>> {
            let (state, call) = (self.state, self.call);
            let state = match state {
                State::Asked(answer) => match answer.get() {
                    None => State::Asked(answer),
                    Some(Ok(Ok(response))) => {
                        let named = |(name, value): (String, Vec<u8>)| {
                            (name.to_ascii_lowercase(), String::from_utf8_lossy(&value).into_owned())
                        };
                        let headers = response.headers().entries().into_iter().map(named).collect();
                        let answer = Answer { status: response.status(), headers, body: Vec::new() };
                        let body = response.consume().map_err(|()| Err(failed("its answer has no body")))?;
                        let stream = body.stream().map_err(|()| Err(failed("its answer has no body")))?;
                        State::Read(answer, Body { stream, _body: body })
                    }
                    Some(Ok(Err(error))) => return Err(Err(kind(&error))),
                    Some(Err(())) => return Err(Err(failed("it was answered twice"))),
                },
                State::Read(mut answer, body) => match body.stream.read(64 << 10) {
                    Ok(bytes) if answer.body.len() + bytes.len() > call.most => {
                        let rest = call.most - answer.body.len();
                        answer.body.extend(&bytes[..rest]);
                        return Err(if call.cut { Ok(answer) } else { Err(ErrorKind::TooLong) });
                    }
                    Ok(bytes) => {
                        answer.body.extend(bytes);
                        State::Read(answer, body)
                    }
                    Err(StreamError::Closed) => return Err(Ok(answer)),
                    Err(StreamError::LastOperationFailed(error)) => {
                        return Err(Err(match wasip2::http::types::http_error_code(&error) {
                            Some(code) => kind(&code),
                            None => failed(&error.to_debug_string()),
                        }));
                    }
                },
            };
            Ok(Self { state, call, ..self })
        }
    }

    pub(super) fn send_all(calls: Vec<Call>) -> Vec<Result<Answer, Error>> {
        let urls: Vec<_> = calls.iter().map(|call| call.url.clone()).collect();
        let mut waiting = calls.into_iter().enumerate();
        let mut results: Vec<Option<Result<Answer, ErrorKind>>> = urls.iter().map(|_| None).collect();
        let mut open: Vec<Open> = Vec::new();
        loop {
            while open.len() < AT_ONCE
                && let Some((at, call)) = waiting.next()
            {
                match begin(&call) {
                    Ok(answer) => {
                        let left = Left::from_now(call.timeout);
                        open.push(Open { at, call, left, state: State::Asked(answer) });
                    }
                    Err(kind) => results[at] = Some(Err(kind)),
                }
            }
            if open.is_empty() {
                break;
            }
            let ready = wait::any(open.iter().map(Open::pollable).collect(), open.iter().map(|open| open.left).min());
            let mut still = Vec::new();
            for (open, is_ready) in open.into_iter().zip(ready) {
                let at = open.at;
                match open.left.is_over() {
                    true => results[at] = Some(Err(ErrorKind::Timeout)),
                    false if !is_ready => still.push(open),
                    false => match open.go_on() {
                        Ok(open) => still.push(open),
                        Err(result) => results[at] = Some(result),
                    },
                }
            }
            open = still;
        }
        let ended = |result: Option<Result<Answer, ErrorKind>>| result.unwrap_or(Err(ErrorKind::Timeout));
        let results = results.into_iter().zip(&urls);
        results.map(|(result, url)| ended(result).map_err(|kind| Error::new(url, kind))).collect()
    }

    fn failed(why: &str) -> ErrorKind {
        ErrorKind::Failed(why.to_owned())
    }

    fn kind(code: &ErrorCode) -> ErrorKind {
        match code {
            ErrorCode::HttpRequestDenied => ErrorKind::Denied,
            ErrorCode::ConnectionTimeout | ErrorCode::HttpResponseTimeout | ErrorCode::ConnectionReadTimeout => {
                ErrorKind::Timeout
            }
            ErrorCode::HttpResponseBodySize(_) | ErrorCode::HttpRequestBodySize(_) => ErrorKind::TooLong,
            ErrorCode::HttpRequestUriInvalid => ErrorKind::Url,
            code => ErrorKind::Failed(said(code)),
        }
    }

    fn said(code: &ErrorCode) -> String {
        match code {
            ErrorCode::DnsError(_) | ErrorCode::DestinationNotFound => "its name leads nowhere",
            ErrorCode::DnsTimeout => "its name was not looked up in time",
            ErrorCode::ConnectionRefused => "nobody listens there",
            ErrorCode::DestinationUnavailable | ErrorCode::DestinationIpUnroutable => "there is no way there",
            ErrorCode::ConnectionTerminated | ErrorCode::HttpResponseIncomplete => "the server closed the connection",
            ErrorCode::ConnectionLimitReached => "the handler has too many connections",
            ErrorCode::TlsCertificateError => {
                "its certificate is not one that the node trusts (a rule `http URL any-certificate` takes any)"
            }
            ErrorCode::TlsProtocolError => "TLS failed",
            ErrorCode::HttpProtocolError => "the server does not speak HTTP",
            ErrorCode::InternalError(Some(why)) => return why.clone(),
            // The others have names, too, but those would make each handler larger.
            _ => "the request failed",
        }
        .to_owned()
    }

    fn begin(call: &Call) -> Result<FutureIncomingResponse, ErrorKind> {
        let (is_tls, authority, path) = parts(&call.url).ok_or(ErrorKind::Url)?;
        if call.body.len() > MOST_SENT {
            return Err(ErrorKind::TooLong);
        }
        let mut headers: Vec<_> =
            call.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
        if !call.body.is_empty() {
            headers.push(("content-length".to_owned(), call.body.len().to_string().into_bytes()));
        }
        // More of them end the instance.
        if headers.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>() > MOST_HEADERS {
            return Err(ErrorKind::TooLong);
        }
        let headers = Fields::from_list(&headers).map_err(|_| failed("a header is not one that may be sent"))?;
        let request = OutgoingRequest::new(headers);
        let method = match call.method.as_str() {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "HEAD" => Method::Head,
            other => Method::Other(other.to_owned()),
        };
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        request.set_method(&method).map_err(|()| failed("its method"))?;
        request.set_scheme(Some(if is_tls { &Scheme::Https } else { &Scheme::Http })).map_err(|()| ErrorKind::Url)?;
        request.set_authority(Some(authority)).map_err(|()| ErrorKind::Url)?;
        request.set_path_with_query(Some(if path.is_empty() { "/" } else { &path })).map_err(|()| ErrorKind::Url)?;
        let options = RequestOptions::new();
        let time = u64::try_from(call.timeout.as_nanos()).unwrap_or(u64::MAX);
        let _ = options.set_connect_timeout(Some(time));
        let _ = options.set_first_byte_timeout(Some(time));
        let _ = options.set_between_bytes_timeout(Some(time));
        let body = request.body().map_err(|()| failed("its body"))?;
        let answer = outgoing_handler::handle(request, Some(options)).map_err(|code| kind(&code))?;
        {
            // It fits into what the node takes at once.
            let stream = body.write().map_err(|()| failed("its body"))?;
            for piece in call.body.chunks(4096) {
                stream.blocking_write_and_flush(piece).map_err(|_| failed("its body cannot be sent"))?;
            }
        }
        OutgoingBody::finish(body, None).map_err(|code| kind(&code))?;
        Ok(answer)
    }
}

#[cfg(not(target_family = "wasm"))]
use crate::fake::http as inner;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_parts() {
        assert_eq!(parts("http://a.example"), Some((false, "a.example", "")));
        assert_eq!(parts("HTTPS://[fd00::1]:8443/x?y=z#part"), Some((true, "[fd00::1]:8443", "/x?y=z")));
        assert_eq!(parts("http://a.example?x=/"), Some((false, "a.example", "?x=/")));
        for url in ["ftp://a.example", "a.example", "http://", "http:///x", "http://user@a.example/"] {
            assert_eq!(parts(url), None, "{url}");
        }
    }

    #[test]
    fn a_redirect_is_read_as_a_browser_reads_it() {
        let to = |location: &str| {
            let headers = vec![("location".to_owned(), location.to_owned())];
            let answer = Answer { status: 307, headers, body: Vec::new() };
            Call::get("https://a.example/dir/x?y/z").redirected(&answer).unwrap().url
        };
        assert_eq!(to("http://b.example/"), "http://b.example/");
        assert_eq!(to("//b.example/x"), "https://b.example/x");
        assert_eq!(to("/other"), "https://a.example/other");
        assert_eq!(to("other?q"), "https://a.example/dir/other?q");
        assert_eq!(to("?page=2"), "https://a.example/dir/x?page=2");
        assert_eq!(to("/login?next=https://c.example/"), "https://a.example/login?next=https://c.example/");
        let plain = Answer { status: 200, ..Answer::default() };
        assert_eq!(Call::get("https://a.example").redirected(&plain), None);
    }

    #[test]
    fn messages_have_no_secrets() {
        let error = Error::new("https://me:secret@a.example/x?token=secret", ErrorKind::Timeout);
        assert_eq!(error.to_string(), "https://a.example/x: no answer in time");
        assert_eq!(Error::new("no url", ErrorKind::Url).to_string(), "no url: it is no URL of http or https");
    }
}
