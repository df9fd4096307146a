//! A blob of an image on its way into the store, and requests that are made again.

use super::Registry;
use crate::digest::Hasher;
use crate::pull_error::PullError;
use crate::store::ImageStore;
use oci_client::manifest::OciDescriptor;
use reqwest::StatusCode;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Pauses before a request that failed for the moment is made again.
pub(super) const PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

impl Registry {
    /// Downloads a blob unless it is there. A connection that breaks off is taken up where it was.
    pub(super) async fn blob(
        &self,
        layer: &OciDescriptor,
        store: &ImageStore,
        limit: u64,
    ) -> Result<PathBuf, PullError> {
        let size = size_of(layer);
        if size > limit {
            return Err(PullError::TooLarge { size, limit });
        }
        if store.blob_path(&layer.digest).is_none() {
            return Err(self.session.protocol(format!(
                "digest {:?}, which cannot be checked: sha256, sha384 and sha512 can",
                layer.digest
            )));
        }
        if let Some(path) = store.blob(&layer.digest).filter(|_| self.is_theirs(layer)) {
            if std::fs::metadata(&path)?.len() != size {
                return Err(self.session.protocol(format!("{size} bytes for {}, which has others", layer.digest)));
            }
            return Ok(path);
        }
        let mut download = Download::new(&layer.digest, store)?;
        let mut pauses = PAUSES.iter();
        loop {
            match self.continue_download(layer, &mut download, size).await {
                Ok(()) => break,
                Err(error) if error.is_temporary() => {
                    let Some(pause) = pauses.next() else { return Err(error) };
                    tracing::info!(
                        registry = self.session.name(),
                        bytes = download.bytes,
                        "{error}; going on with the download"
                    );
                    tokio::time::sleep(*pause).await;
                }
                Err(error) => return Err(error),
            }
        }
        let actual = download.hash.digest();
        if actual != layer.digest {
            return Err(self.damaged(&layer.digest, actual));
        }
        // To the disk, which may take its time.
        let store = store.clone();
        let kept = tokio::task::spawn_blocking(move || store.keep(download.staged, &actual));
        Ok(kept.await.map_err(std::io::Error::other)??)
    }

    async fn continue_download(
        &self,
        layer: &OciDescriptor,
        download: &mut Download,
        size: u64,
    ) -> Result<(), PullError> {
        let mut answer = self.session.get(&format!("blobs/{}", layer.digest), &[], download.bytes).await?;
        if download.bytes > 0 && answer.status() != StatusCode::PARTIAL_CONTENT {
            // The registry cannot continue; once more from the beginning.
            download.restart(&layer.digest)?;
        }
        loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    let error = self.session.failed(&error);
                    return Err(self.session.temporary(format!("the download broke off: {error}")));
                }
            };
            if download.bytes + chunk.len() as u64 > size {
                return Err(self.session.protocol(format!("more than the {size} bytes that the manifest says")));
            }
            download.take(&chunk)?;
        }
        if download.bytes < size {
            return Err(self.session.temporary(format!("the download ended after {} of {size} bytes", download.bytes)));
        }
        Ok(())
    }

    pub(super) fn damaged(&self, expected: &str, actual: String) -> PullError {
        PullError::Digest { registry: self.session.name().to_owned(), expected: expected.to_owned(), actual }
    }
}

/// Bytes of a blob so far.
struct Download {
    staged: tempfile::NamedTempFile,
    hash: Hasher,
    bytes: u64,
}

impl Download {
    fn new(digest: &str, store: &ImageStore) -> std::io::Result<Self> {
        let staged = tempfile::NamedTempFile::new_in(store.staged())?;
        Ok(Self { staged, hash: Hasher::like(digest), bytes: 0 })
    }

    fn take(&mut self, chunk: &[u8]) -> std::io::Result<()> {
        self.staged.write_all(chunk)?;
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    fn restart(&mut self, digest: &str) -> std::io::Result<()> {
        use std::io::Seek as _;
        self.staged.as_file().set_len(0)?;
        self.staged.rewind()?;
        (self.hash, self.bytes) = (Hasher::like(digest), 0);
        Ok(())
    }
}

pub(super) fn size_of(layer: &OciDescriptor) -> u64 {
    u64::try_from(layer.size).unwrap_or(u64::MAX)
}
