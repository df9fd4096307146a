//! `/containerLogs/<namespace>/<pod>/<container>`.

use super::{Body, Shared, text};
use crate::container_log::{ContainerLogError, ContainerLogReader, LogRequest};
use akri_krustlet_runtime::log::{LogOptions, LogPrinter, Stream};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use std::convert::Infallible;
use tokio::sync::mpsc;

/// What the query asks for.
#[derive(Debug, Default, PartialEq)]
struct Query {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit_bytes: Option<u64>,
    /// Both by default.
    stream: Option<Stream>,
}

impl Query {
    fn parse(text: &str, now: Timestamp) -> Result<Self, String> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value);
            let invalid = |expected: &str| format!("{name}={value}: expected {expected}");
            let number = |least: u64| value.parse::<u64>().ok().filter(|number| *number >= least);
            match name {
                "follow" => query.follow = boolean(&value).ok_or_else(|| invalid("true or false"))?,
                "previous" => query.previous = boolean(&value).ok_or_else(|| invalid("true or false"))?,
                "timestamps" => query.timestamps = boolean(&value).ok_or_else(|| invalid("true or false"))?,
                "tailLines" => {
                    let lines = number(0).ok_or_else(|| invalid("a number of lines"))?;
                    query.tail = Some(usize::try_from(lines).unwrap_or(usize::MAX));
                }
                "sinceSeconds" => {
                    let seconds = number(1).and_then(|seconds| i64::try_from(seconds).ok());
                    let seconds = seconds.ok_or_else(|| invalid("a number of seconds, at least 1"))?;
                    // Longer ago than time goes: everything.
                    query.since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
                }
                "sinceTime" => {
                    query.since = Some(value.parse().map_err(|_| invalid("a time such as 2026-01-01T00:00:00Z"))?)
                }
                "limitBytes" => {
                    query.limit_bytes = Some(number(1).ok_or_else(|| invalid("a number of bytes, at least 1"))?);
                }
                "stream" => match value.as_str() {
                    "All" | "" => query.stream = None,
                    "Stdout" => query.stream = Some(Stream::Stdout),
                    "Stderr" => query.stream = Some(Stream::Stderr),
                    _ => return Err(invalid("All, Stdout or Stderr")),
                },
                _ => {}
            }
        }
        Ok(query)
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "" | "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// `%3A` and the like; a `+` is a space.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<_> = rest.by_ref().take(2).collect();
                let hex = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(hex.unwrap_or(b'?'));
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn answer(shared: &Shared, [namespace, pod, container]: [&str; 3], query: &str) -> Response<Body> {
    let query = match Query::parse(query, Timestamp::now()) {
        Ok(query) => query,
        Err(message) => return text(StatusCode::BAD_REQUEST, &message),
    };
    let request = LogRequest {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
        previous: query.previous,
        follow: query.follow,
        options: LogOptions { tail: query.tail, since: query.since },
    };
    let reader = match ContainerLogReader::open(request, shared.data.clone(), Some(&shared.watcher)) {
        Ok(reader) => reader,
        Err(error) => {
            let status = match error {
                ContainerLogError::NoPod(_) | ContainerLogError::NoContainer { .. } => StatusCode::NOT_FOUND,
                ContainerLogError::Waiting { .. } | ContainerLogError::NoPrevious { .. } => StatusCode::BAD_REQUEST,
                ContainerLogError::Log(_) | ContainerLogError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return text(status, &error.to_string());
        }
    };
    // Few, so that a client that does not read holds little.
    let (chunks, receiver) = mpsc::channel(2);
    tokio::spawn(copy(reader, query, chunks));
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(chunk)), receiver))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Reads until the log or the client ends.
async fn copy(mut reader: ContainerLogReader, query: Query, chunks: mpsc::Sender<Bytes>) {
    let mut left = query.limit_bytes.unwrap_or(u64::MAX);
    let mut printer = LogPrinter::new(query.timestamps);
    loop {
        let parts = tokio::select! {
            parts = reader.next() => parts,
            () = chunks.closed() => return,
        };
        let parts = match parts {
            Ok(Some(parts)) => parts,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a log that is being read broke off");
                return;
            }
        };
        let mut chunk = Vec::new();
        let wanted = parts.iter().filter(|part| query.stream.is_none_or(|stream| stream == part.stream));
        wanted.for_each(|part| printer.print(part, &mut chunk));
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= chunk.len() as u64;
        if (!chunk.is_empty() && chunks.send(Bytes::from(chunk)).await.is_err()) || left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_kubectls() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let parsed =
            Query::parse("follow=true&tailLines=5&sinceSeconds=60&timestamps=true&limitBytes=9&x=y", now).unwrap();
        let expected = Query {
            follow: true,
            timestamps: true,
            tail: Some(5),
            since: "2026-01-01T00:00:00Z".parse().ok(),
            limit_bytes: Some(9),
            ..Query::default()
        };
        assert_eq!(parsed, expected);
        assert_eq!(Query::parse("sinceTime=2026-01-01T00%3A00%3A00Z", now).unwrap().since, expected.since);
        assert_eq!(Query::parse(&format!("sinceSeconds={}", i64::MAX), now).unwrap().since, None);
        for bad in ["tailLines=-1", "tailLines=x", "limitBytes=0", "sinceTime=yesterday", "follow=perhaps", "stream=in"]
        {
            assert!(Query::parse(bad, now).is_err(), "{bad}");
        }
    }
}
