//! A connection whose bytes count as sent by its guest.

use crate::network::NetworkAccess;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Most bytes that are written at once.
const PIECE: usize = 64 << 10;

/// A connection that takes no more than its guest may send.
pub(super) struct Paced {
    inner: TcpStream,
    access: Arc<NetworkAccess>,
    free: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) fn new(inner: TcpStream, access: Arc<NetworkAccess>) -> Self {
        Self { inner, access, free: None }
    }

    /// Until the guest may send something.
    fn poll_free(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.free {
                ready!(sleep.as_mut().poll(context));
                self.free = None;
            }
            let free = self.access.sends(0);
            if free <= Instant::now() {
                return Poll::Ready(());
            }
            self.free = Some(Box::pin(tokio::time::sleep_until(free)));
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_free(context));
        let piece = &bytes[..bytes.len().min(PIECE)];
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, piece))?;
        self.access.sends(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
