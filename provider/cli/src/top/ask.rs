//! Asks the node, by the socket in its data directory.

use super::model::Model;
use akri_krustlet_node::overview::Overview;
use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

/// How long the node may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Largest answer, in bytes.
const MOST: usize = 64 << 20;

/// What the node is at, and the log of what is selected.
pub(super) async fn ask(socket: &Path, model: &mut Model) -> anyhow::Result<()> {
    let overview: Overview = serde_json::from_slice(&get(socket, "/overview").await?)?;
    model.take(overview);
    model.log = match model.logged() {
        Some(container) => match get(socket, &format!("/logs/{container}")).await {
            Ok(text) => String::from_utf8_lossy(&text).lines().map(str::to_owned).collect(),
            Err(error) => vec![format!("{error:#}")],
        },
        None => Vec::new(),
    };
    Ok(())
}

async fn get(socket: &Path, path: &str) -> anyhow::Result<Bytes> {
    let asked = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = hyper::Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        if !status.is_success() {
            bail!("{}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    };
    tokio::time::timeout(ANSWER, asked).await.context("it takes too long")?
}
