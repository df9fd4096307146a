//! A guest's standard input: held open, with nothing in it, until it is closed.
//!
//! A container with `stdin: true` has one. Its end is how a guest learns that it is to end, as a process learns it from a
//! signal. A container without has an empty standard input.

use tokio_util::sync::CancellationToken;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// The host's end.
#[derive(Clone, Debug, Default)]
pub struct Stdin {
    closed: CancellationToken,
}

impl Stdin {
    /// What the guest reads ends here.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Resolves when it is closed.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncRead + Send + Sync> {
        // Only WASI 0.3 asks for this form, and the node does not link it.
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl InputStream for Stdin {
    fn read(&mut self, _: usize) -> StreamResult<bytes::Bytes> {
        if self.closed.is_cancelled() { Err(StreamError::Closed) } else { Ok(bytes::Bytes::new()) }
    }
}

#[async_trait::async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        self.closed.cancelled().await;
    }
}
