//! Streams of a connection, and bodies of a request, with what goes through them written down.

use super::Recorder;
use ::http_body::{Body, Frame, SizeHint};
use akri_recording::{Event, Http, Tcp};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError};
use wasmtime_wasi_http::{Error, WasiBody};

type Streamed<T> = Result<T, StreamError>;

/// What a guest reads of a connection.
pub(crate) struct RecordedInput {
    pub(crate) inner: DynInputStream,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) number: u32,
    pub(crate) has_ended: bool,
}

/// What it writes.
pub(crate) struct RecordedOutput {
    pub(crate) inner: DynOutputStream,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) number: u32,
}

#[async_trait::async_trait]
impl Pollable for RecordedInput {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}

#[async_trait::async_trait]
impl InputStream for RecordedInput {
    fn read(&mut self, size: usize) -> Streamed<Bytes> {
        let read = self.inner.read(size);
        let what = match &read {
            Ok(bytes) if bytes.is_empty() => return read,
            Ok(bytes) => Tcp::Read(bytes.to_vec()),
            Err(StreamError::Closed) => Tcp::End,
            Err(_) => Tcp::Broken,
        };
        if !self.has_ended {
            self.has_ended = read.is_err();
            self.recorder.note(Event::Tcp(self.number, what));
        }
        read
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

#[async_trait::async_trait]
impl Pollable for RecordedOutput {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for RecordedOutput {
    fn write(&mut self, bytes: Bytes) -> Streamed<()> {
        self.recorder.note(Event::Tcp(self.number, Tcp::Wrote(bytes.to_vec())));
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> Streamed<()> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> Streamed<usize> {
        self.inner.check_write()
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

/// A body whose parts are written down, of an answer or of a request.
pub(crate) fn recorded(body: WasiBody, recorder: Arc<Recorder>, number: u32, of_answer: bool) -> WasiBody {
    RecordedBody { inner: body, recorder, number, of_answer, has_ended: false }.boxed_unsync()
}

struct RecordedBody {
    inner: WasiBody,
    recorder: Arc<Recorder>,
    number: u32,
    of_answer: bool,
    has_ended: bool,
}

impl Body for RecordedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let what = match (&frame, self.of_answer) {
            (Some(Ok(frame)), of_answer) => {
                frame.data_ref().filter(|data| !data.is_empty()).map(|data| match of_answer {
                    true => Http::AnswerBody(data.to_vec()),
                    false => Http::Body(data.to_vec()),
                })
            }
            (None, true) if !self.has_ended => Some(Http::End),
            (Some(Err(_)), true) if !self.has_ended => Some(Http::Failed("closed".to_owned())),
            _ => None,
        };
        self.has_ended |= !matches!(frame, Some(Ok(_)));
        if let Some(what) = what {
            self.recorder.note(Event::Http(self.number, what));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
