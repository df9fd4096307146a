//! Talks to registries.

use crate::layout::{self, Layout, LayoutError};
use crate::store::{ImageStore, hex};
use futures::StreamExt as _;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Why an image cannot be had from its registry.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Wrong credentials, or none where some are needed.
    #[error(
        "{registry} refuses {credentials}: give the pod a matching imagePullSecret, or the node a credentials file; {message}"
    )]
    Unauthorized {
        /// The registry.
        registry: String,
        /// Which credentials were tried, in words.
        credentials: &'static str,
        /// What the registry said.
        message: String,
    },
    /// The registry does not have it.
    #[error("{registry} has no such image: check the name and the tag")]
    NotFound {
        /// The registry.
        registry: String,
    },
    /// It may work later: no connection, a time-out, 429, 5xx, a connection that broke off.
    #[error("{registry}: {message}")]
    Temporary {
        /// The registry.
        registry: String,
        /// What happened.
        message: String,
    },
    /// What came is not what the digest names.
    #[error("{registry} sent {actual} for {expected}: the image is damaged there or on the way")]
    Digest {
        /// The registry.
        registry: String,
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// Larger than any module may be.
    #[error("its layer has {size} bytes, a module may have {limit}")]
    TooLarge {
        /// What the manifest says.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// It holds no module for this node.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file is there and is something else.
    #[error("its module is not WebAssembly: it begins with {0}")]
    NotWasm(String),
    /// The registry broke the protocol.
    #[error("{registry}: {message}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What was wrong.
        message: String,
    },
    /// The node's disk.
    #[error("cannot store the image: {0}")]
    Store(#[from] std::io::Error),
}

impl PullError {
    fn is_temporary(&self) -> bool {
        matches!(self, Self::Temporary { .. })
    }
}

/// Pauses before a request that failed for the moment is made again.
const PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// Largest configuration of an image, in bytes.
const MOST_CONFIG: u64 = 1 << 20;

/// One registry with one set of credentials, for one pull: tokens are not shared between pulls of different pods.
pub(crate) struct Registry {
    client: oci_client::Client,
    auth: RegistryAuth,
    name: String,
}

/// What a reference leads to.
pub(crate) struct Resolved {
    /// Digest of the manifest that names the layers.
    pub(crate) digest: String,
    pub(crate) layout: Layout,
    config: OciDescriptor,
}

impl Registry {
    pub(crate) fn new(image: &Reference, auth: RegistryAuth, insecure: &[String]) -> Result<Self, PullError> {
        let name = image.resolve_registry().to_owned();
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(insecure.to_vec()),
            read_timeout: Some(Duration::from_secs(30)),
            connect_timeout: Some(Duration::from_secs(10)),
            user_agent: concat!("akri-krustlet/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config)
            .map_err(|error| PullError::Protocol { registry: name.clone(), message: error.to_string() })?;
        Ok(Self { client, auth, name })
    }

    /// Follows the reference to a manifest with layers.
    pub(crate) async fn resolve(&self, image: &Reference) -> Result<Resolved, PullError> {
        self.retried(|| async {
            self.client.auth(image, &self.auth, RegistryOperation::Pull).await.map_err(|error| self.failed(error))
        })
        .await?;
        let (manifest, digest) = self.manifest(image).await?;
        let (manifest, digest) = match manifest {
            OciManifest::Image(manifest) => (manifest, digest),
            OciManifest::ImageIndex(index) => {
                let entry = layout::entry_of(&index.manifests)?;
                match self.manifest(&image.clone_with_digest(entry.digest.clone())).await? {
                    (OciManifest::Image(manifest), _) => (manifest, digest),
                    (OciManifest::ImageIndex(_), _) => {
                        return Err(self.protocol("an index of indexes".to_owned()));
                    }
                }
            }
        };
        Ok(Resolved { digest, layout: layout::layout_of(&manifest)?, config: manifest.config })
    }

    async fn manifest(&self, image: &Reference) -> Result<(OciManifest, String), PullError> {
        let (bytes, digest) = self
            .retried(|| async {
                let answer = self.client.pull_manifest_raw(image, &self.auth, &layout::MANIFESTS).await;
                answer.map_err(|error| self.failed(error))
            })
            .await?;
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|error| self.protocol(format!("a manifest that is not understood: {error}")))?;
        Ok((manifest, digest))
    }

    /// Downloads what the module is in and puts the module into the store; its digest.
    pub(crate) async fn fetch(
        &self,
        image: &Reference,
        resolved: &Resolved,
        store: &ImageStore,
        limit: u64,
    ) -> Result<String, PullError> {
        let (digest, path) = match &resolved.layout {
            Layout::Artifact(layer) => (layer.digest.clone(), self.blob(image, layer, store, limit).await?),
            Layout::Archives(layers) => {
                let entrypoint = self.entrypoint(image, resolved, store).await?;
                let total = layers.iter().map(size_of).sum();
                if total > limit {
                    return Err(PullError::TooLarge { size: total, limit });
                }
                let mut archives = Vec::new();
                for layer in layers {
                    archives.push((layer.media_type.clone(), self.blob(image, layer, store, limit).await?));
                }
                let unpacked =
                    tokio::task::spawn_blocking(move || layout::module_of(&archives, entrypoint.as_deref(), limit));
                let module = unpacked.await.map_err(std::io::Error::other)??;
                let digest = store.keep_bytes(&module)?;
                let path = store.blob(&digest).ok_or_else(|| std::io::Error::other("the module was removed"))?;
                (digest, path)
            }
        };
        check_magic(&path)?;
        Ok(digest)
    }

    /// What an image's configuration starts, after checking that the image is for WebAssembly at all.
    async fn entrypoint(
        &self,
        image: &Reference,
        resolved: &Resolved,
        store: &ImageStore,
    ) -> Result<Option<String>, PullError> {
        let path = self.blob(image, &resolved.config, store, MOST_CONFIG).await?;
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)
            .map_err(|error| self.protocol(format!("a configuration that is not understood: {error}")))?;
        let text = |name: &str| config.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let (os, architecture) = (text("os"), text("architecture"));
        if !layout::is_wasm(&os, &architecture) {
            return Err(LayoutError::Platform { platforms: format!("{os}/{architecture}") }.into());
        }
        let first = |pointer: &str| config.pointer(pointer).and_then(|value| value.as_str()).map(str::to_owned);
        Ok(first("/config/Entrypoint/0").or_else(|| first("/config/Cmd/0")))
    }

    /// Downloads a blob unless it is there. A connection that breaks off is taken up where it was.
    async fn blob(
        &self,
        image: &Reference,
        layer: &OciDescriptor,
        store: &ImageStore,
        limit: u64,
    ) -> Result<PathBuf, PullError> {
        let size = size_of(layer);
        if size > limit {
            return Err(PullError::TooLarge { size, limit });
        }
        if store.blob_path(&layer.digest).is_none() {
            return Err(self.protocol(format!("digest {:?}, which is not SHA-256", layer.digest)));
        }
        if let Some(path) = store.blob(&layer.digest) {
            return Ok(path);
        }
        let mut download =
            Download { staged: tempfile::NamedTempFile::new_in(store.staged())?, hash: Sha256::new(), bytes: 0 };
        let mut pauses = PAUSES.iter();
        loop {
            match self.continue_download(image, layer, &mut download, size).await {
                Ok(()) => break,
                Err(error) if error.is_temporary() => {
                    let Some(pause) = pauses.next() else { return Err(error) };
                    tracing::info!(registry = self.name, bytes = download.bytes, "{error}; going on with the download");
                    tokio::time::sleep(*pause).await;
                }
                Err(error) => return Err(error),
            }
        }
        let actual = format!("sha256:{}", hex(&download.hash.finalize()));
        if actual != layer.digest {
            return Err(PullError::Digest { registry: self.name.clone(), expected: layer.digest.clone(), actual });
        }
        Ok(store.keep(download.staged, &actual)?)
    }

    async fn continue_download(
        &self,
        image: &Reference,
        layer: &OciDescriptor,
        download: &mut Download,
        size: u64,
    ) -> Result<(), PullError> {
        let stream = if download.bytes == 0 {
            self.client.pull_blob_stream(image, layer).await.map_err(|error| self.failed(error))?
        } else {
            let answer = self.client.pull_blob_stream_partial(image, layer, download.bytes, None).await;
            match answer.map_err(|error| self.failed(error))? {
                BlobResponse::Partial(stream) => stream,
                // The registry cannot continue; once more from the beginning.
                BlobResponse::Full(stream) => {
                    download.restart()?;
                    stream
                }
            }
        };
        let SizedStream { mut stream, .. } = stream;
        while let Some(chunk) = stream.next().await {
            // The library ends its stream with an error if the digest is wrong; ours tells both digests.
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(_) if download.bytes == size => break,
                Err(error) => return Err(self.temporary(format!("the download broke off: {error}"))),
            };
            if download.bytes + chunk.len() as u64 > size {
                return Err(self.protocol(format!("more than the {size} bytes that the manifest says")));
            }
            download.take(&chunk)?;
        }
        if download.bytes < size {
            return Err(self.temporary(format!("the download ended after {} of {size} bytes", download.bytes)));
        }
        Ok(())
    }

    async fn retried<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, PullError>
    where
        F: Future<Output = Result<T, PullError>>,
    {
        for pause in PAUSES {
            match attempt().await {
                Err(error) if error.is_temporary() => {
                    tracing::info!(registry = self.name, "{error}; trying again");
                    tokio::time::sleep(pause).await;
                }
                result => return result,
            }
        }
        attempt().await
    }

    fn temporary(&self, message: String) -> PullError {
        PullError::Temporary { registry: self.name.clone(), message }
    }

    fn protocol(&self, message: String) -> PullError {
        PullError::Protocol { registry: self.name.clone(), message }
    }

    fn unauthorized(&self, message: String) -> PullError {
        let credentials = match self.auth {
            RegistryAuth::Anonymous => "to serve this without credentials",
            _ => "the credentials for it",
        };
        PullError::Unauthorized { registry: self.name.clone(), credentials, message }
    }

    fn failed(&self, error: OciDistributionError) -> PullError {
        use OciDistributionError as E;
        let shortened = |text: &str| text.trim().chars().take(300).collect::<String>();
        match error {
            E::UnauthorizedError { .. } => self.unauthorized("it answered 401".to_owned()),
            E::AuthenticationFailure(message) => self.unauthorized(shortened(&message)),
            E::ImageManifestNotFoundError(_) => PullError::NotFound { registry: self.name.clone() },
            E::ServerError { code: 404, .. } => PullError::NotFound { registry: self.name.clone() },
            E::ServerError { code: 401 | 403, message, .. } => self.unauthorized(shortened(&message)),
            E::ServerError { code, message, .. } if code == 408 || code == 429 || code >= 500 => {
                self.temporary(format!("it answered {code} {}", shortened(&message)).trim_end().to_owned())
            }
            E::RegistryError { envelope, .. } => {
                let message = shortened(
                    &envelope.errors.iter().map(|error| error.message.as_str()).collect::<Vec<_>>().join("; "),
                );
                match envelope.errors.first().map(|error| &error.code) {
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                        | OciErrorCode::BlobUnknown,
                    ) => PullError::NotFound { registry: self.name.clone() },
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => self.unauthorized(message),
                    Some(OciErrorCode::Toomanyrequests) => self.temporary(format!("too many requests; {message}")),
                    _ => self.protocol(message),
                }
            }
            E::RequestError(error) => {
                let mut message = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    message = format!("{message}: {cause}");
                    source = cause.source();
                }
                if error.is_decode() || error.is_builder() { self.protocol(message) } else { self.temporary(message) }
            }
            E::DigestError(error) => self.protocol(format!("a manifest whose digest is wrong: {error}")),
            E::IoError(error) => self.temporary(error.to_string()),
            other => self.protocol(shortened(&other.to_string())),
        }
    }
}

/// Bytes of a blob so far.
struct Download {
    staged: tempfile::NamedTempFile,
    hash: Sha256,
    bytes: u64,
}

impl Download {
    fn take(&mut self, chunk: &[u8]) -> std::io::Result<()> {
        self.staged.write_all(chunk)?;
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        use std::io::Seek as _;
        self.staged.as_file().set_len(0)?;
        self.staged.rewind()?;
        (self.hash, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }
}

fn size_of(layer: &OciDescriptor) -> u64 {
    u64::try_from(layer.size).unwrap_or(u64::MAX)
}

fn check_magic(path: &std::path::Path) -> Result<(), PullError> {
    use std::io::Read as _;
    let mut magic = Vec::new();
    std::fs::File::open(path)?.take(4).read_to_end(&mut magic)?;
    if magic == b"\0asm" { Ok(()) } else { Err(PullError::NotWasm(format!("{:?}", magic.escape_ascii().to_string()))) }
}
