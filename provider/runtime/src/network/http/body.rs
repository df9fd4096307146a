//! A response's body, read no further than its bounds.

use ::http_body::{Body, Frame, SizeHint};
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::Error;

/// Largest body, in bytes.
pub(super) const MOST_BODY: u64 = 64 << 20;

/// A body of at most [`MOST_BODY`] bytes that has ended in time and does not stop for long.
pub(super) struct BoundedBody<B> {
    inner: B,
    left: u64,
    between: Duration,
    ends: Instant,
    sleep: Pin<Box<Sleep>>,
    /// What is read of it may stay in memory when the connection has ended: it counts as one.
    _turn: Arc<OwnedSemaphorePermit>,
}

impl<B> BoundedBody<B> {
    pub(super) fn new(inner: B, between: Duration, ends: Instant, turn: Arc<OwnedSemaphorePermit>) -> Self {
        let sleep = Box::pin(tokio::time::sleep_until(ends.min(Instant::now() + between)));
        Self { inner, left: MOST_BODY, between, ends, sleep, _turn: turn }
    }
}

impl<B> Body for BoundedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Error>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                std::task::ready!(self.sleep.as_mut().poll(context));
                let late = self.ends <= Instant::now();
                let error = if late { Error::HttpResponseTimeout } else { Error::ConnectionReadTimeout };
                return Poll::Ready(Some(Err(error)));
            }
        };
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame.map(|failed| failed.map_err(Into::into))) };
        if self.ends <= Instant::now() {
            return Poll::Ready(Some(Err(Error::HttpResponseTimeout)));
        }
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(left) = self.left.checked_sub(length) else {
            return Poll::Ready(Some(Err(Error::HttpResponseBodySize(Some(MOST_BODY)))));
        };
        self.left = left;
        let next = self.ends.min(Instant::now() + self.between);
        self.sleep.as_mut().reset(next);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::Semaphore;

    /// A body of pieces, each so long after the one before.
    fn body(
        pieces: usize,
        size: usize,
        pause: Duration,
    ) -> BoundedBody<impl Body<Data = Bytes, Error = Error> + Unpin> {
        let pieces = futures::stream::iter(0..pieces).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok(Frame::data(Bytes::from(vec![0; size])))
        });
        let ends = Instant::now() + Duration::from_secs(600);
        let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        BoundedBody::new(StreamBody::new(Box::pin(pieces)), Duration::from_secs(60), ends, Arc::new(turn))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_no_further_than_its_bounds() {
        let whole = body(10, 1 << 20, Duration::from_secs(50)).collect().await.unwrap();
        assert_eq!(whole.to_bytes().len(), 10 << 20);
        let error = body(1, 1, Duration::from_secs(61)).collect().await.unwrap_err();
        assert!(matches!(error, Error::ConnectionReadTimeout), "{error}");
        let error = body(1_000_000, 1, Duration::from_secs(1)).collect().await.unwrap_err();
        assert!(matches!(error, Error::HttpResponseTimeout), "one that never ends: {error}");
        let mut large = body(65, 1 << 20, Duration::ZERO);
        for _ in 0..64 {
            large.frame().await.unwrap().unwrap();
        }
        let error = large.frame().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::HttpResponseBodySize(Some(MOST_BODY))), "{error}");
    }
}
