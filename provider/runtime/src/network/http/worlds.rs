//! Requests that are written down, and those that a recording answers.

use super::{Rest, Sent};
use crate::world::{Recorder, Replay, recorded};
use ::http::{HeaderMap, Request, Response};
use akri_recording::{Event, Http};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use wasmtime_wasi_http::{Error, WasiBody};

/// A request that is written down.
pub(super) struct Recording {
    recorder: Arc<Recorder>,
    number: u32,
}

impl Recording {
    fn note(&self, what: Http) {
        self.recorder.note(Event::Http(self.number, what));
    }

    fn headers(&self, headers: &HeaderMap, of: impl Fn(String, Vec<u8>) -> Http) {
        headers.iter().for_each(|(name, value)| self.note(of(name.as_str().to_owned(), value.as_bytes().to_vec())));
    }
}

pub(super) fn asked(recorder: Arc<Recorder>, request: Request<WasiBody>) -> (Request<WasiBody>, Option<Recording>) {
    let recording = Recording { number: recorder.number(), recorder };
    let (method, url) = (request.method().to_string(), request.uri().to_string());
    recording.note(Http::Asked { method, url });
    recording.headers(request.headers(), Http::Header);
    let (of, number) = (recording.recorder.clone(), recording.number);
    (request.map(|body| recorded(body, of, number, false)), Some(recording))
}

pub(super) async fn answered(recording: Option<Recording>, sent: impl Future<Output = Sent>) -> Sent {
    let sent = sent.await;
    let Some(recording) = recording else { return sent };
    match sent {
        Ok((answer, rest)) => {
            recording.note(Http::Status(answer.status().as_u16()));
            recording.headers(answer.headers(), Http::AnswerHeader);
            let (of, number) = (recording.recorder, recording.number);
            Ok((answer.map(|body| recorded(body, of, number, true)), rest))
        }
        Err(error) => {
            recording.note(Http::Failed(why(&error).to_owned()));
            Err(error)
        }
    }
}

/// Why there is no answer, as recordings have it.
fn why(error: &Error) -> &'static str {
    match error {
        Error::HttpRequestDenied => "denied",
        Error::DnsError { .. } | Error::DestinationNotFound => "not-found",
        Error::DnsTimeout | Error::ConnectionTimeout | Error::HttpResponseTimeout | Error::ConnectionReadTimeout => {
            "timeout"
        }
        Error::Connect(error) => match error.kind() {
            ErrorKind::ConnectionRefused => "refused",
            ErrorKind::TimedOut => "timeout",
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => "closed",
            _ => "unreachable",
        },
        Error::TlsCertificateError => "certificate",
        Error::Tls(error) if super::tls::is_about_certificates(error) => "certificate",
        Error::Tls(_) => "tls",
        Error::HttpResponseBodySize(_) | Error::HttpRequestBodySize(_) => "too-long",
        Error::Hyper(error) if error.is_parse() => "no-http",
        _ => "closed",
    }
}

fn failed(why: &str) -> Error {
    match why {
        "denied" => Error::HttpRequestDenied,
        "not-found" => Error::DestinationNotFound,
        "timeout" => Error::HttpResponseTimeout,
        "refused" => Error::ConnectionRefused,
        "unreachable" => Error::DestinationUnavailable,
        "certificate" => Error::TlsCertificateError,
        "tls" => Error::TlsProtocolError,
        "too-long" => Error::HttpResponseBodySize(None),
        "no-http" => Error::HttpProtocolError,
        _ => Error::ConnectionTerminated,
    }
}

/// What the recording answers.
pub(super) async fn replayed(replay: Arc<Replay>, request: Request<WasiBody>) -> Sent {
    let (method, url) = (request.method().to_string(), request.uri().to_string());
    // The guest has to be able to send all of it; nothing of it is kept.
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let Some(exchange) = replay.request(&method, &url) else {
        let what = io::Error::new(ErrorKind::ConnectionRefused, "not in the recording");
        return Err(Error::Connect(what));
    };
    tokio::time::sleep(exchange.after).await;
    if exchange.status == 0 && exchange.failed.is_none() {
        // Its guest gave it up.
        return std::future::pending().await;
    }
    if exchange.status == 0 {
        return Err(failed(exchange.failed.as_deref().unwrap_or_default()));
    }
    let mut answer = Response::builder().status(exchange.status);
    for (name, value) in exchange.headers {
        answer = answer.header(name, value);
    }
    let whole = Full::new(Bytes::from(exchange.body)).map_err(|never| match never {});
    let body = match exchange.failed {
        None => whole.boxed_unsync(),
        // As much of it as came.
        Some(why) => whole.with_trailers(async move { Some(Err(failed(&why))) }).boxed_unsync(),
    };
    let rest: Rest = Box::new(async { Ok(()) });
    answer.body(body).map(|answer| (answer, rest)).map_err(|_| Error::HttpProtocolError)
}
