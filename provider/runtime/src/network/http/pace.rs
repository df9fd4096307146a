//! A connection whose bytes count as sent and received by its guest.

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

/// A connection that takes no more than its guest may send, and gives no more than it may receive.
pub(super) struct Paced {
    inner: TcpStream,
    access: Arc<NetworkAccess>,
    /// Until more may be sent, and until more may be received.
    free: [Option<Pin<Box<Sleep>>>; 2],
}

/// Which way bytes go.
#[derive(Clone, Copy)]
enum Way {
    Out,
    In,
}

impl Paced {
    pub(super) fn new(inner: TcpStream, access: Arc<NetworkAccess>) -> Self {
        Self { inner, access, free: [None, None] }
    }

    /// Until the guest may send or receive something.
    fn poll_free(&mut self, way: Way, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.free[way as usize] {
                ready!(sleep.as_mut().poll(context));
                self.free[way as usize] = None;
            }
            let free = self.passes(way, 0);
            if free <= Instant::now() {
                return Poll::Ready(());
            }
            self.free[way as usize] = Some(Box::pin(tokio::time::sleep_until(free)));
        }
    }

    /// Counts bytes, and tells from when on there may be more.
    fn passes(&self, way: Way, bytes: usize) -> Instant {
        match way {
            Way::Out => self.access.sends(bytes),
            Way::In => self.access.receives(bytes),
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_free(Way::In, context));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.passes(Way::In, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_free(Way::Out, context));
        let piece = &bytes[..bytes.len().min(PIECE)];
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, piece))?;
        self.passes(Way::Out, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
