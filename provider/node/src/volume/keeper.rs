//! Keeps a pod's volumes as they should be while it runs.

use super::RETRY;
use super::content::Content;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::eviction;
use crate::local_storage::{self, LocalStorage};
use crate::objects::Awaited;
use crate::quantity;
use akri_krustlet_host::until;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What is changed at once, in several objects, is published at once.
const TOGETHER: Duration = Duration::from_millis(100);
/// How often the size of a volume with a limit is looked at, as a kubelet does.
const MEASURE: Duration = Duration::from_secs(10);

/// An emptyDir volume with a limit.
#[derive(Debug)]
pub struct Limited {
    /// Its name.
    pub volume: String,
    /// Where it is.
    pub path: PathBuf,
    /// The limit, as the pod has it.
    pub limit: String,
}

/// The tasks of one pod. They end when this is dropped.
#[derive(Debug)]
pub struct Keeper(Vec<JoinHandle<()>>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Keeper {
    /// `None` if there is nothing to do. `objects` are those of the contents.
    pub fn start(
        context: &Arc<PodContext>,
        contents: Vec<Content>,
        objects: Awaited,
        limited: Vec<Limited>,
    ) -> Option<Self> {
        let mut tasks = Vec::new();
        if !contents.is_empty() {
            tasks.push(tokio::spawn(keep_content(context.clone(), contents, objects)));
        }
        if !limited.is_empty() || local_storage::is_limited(&context.pod) {
            tasks.push(tokio::spawn(keep_limits(context.clone(), limited)));
        }
        (!tasks.is_empty()).then_some(Self(tasks))
    }
}

async fn keep_content(context: Arc<PodContext>, contents: Vec<Content>, mut objects: Awaited) {
    let mut pod = context.latest.subscribe();
    let mut complaint = String::new();
    let mut retry = None;
    loop {
        let due = contents.iter().filter_map(Content::due).chain(retry).min();
        tokio::select! {
            () = objects.changed() => {}
            told = pod.changed() => {
                if told.is_err() {
                    return;
                }
            }
            () = until(due) => {}
        }
        tokio::time::sleep(TOGETHER).await;
        let mut complaints = Vec::new();
        for content in &contents {
            match content.publish(&context).await {
                Ok(true) => tracing::info!(pod = context.pod.key(), volume = content.volume, "the volume has changed"),
                Ok(false) => {}
                Err(error) => complaints.push(format!("volume {}: {error}", content.volume)),
            }
        }
        retry = (!complaints.is_empty()).then(|| Instant::now() + RETRY);
        let complaints = complaints.join("; ");
        if complaints != complaint && !complaints.is_empty() {
            let message = format!("{complaints}; what was there before stays");
            tracing::warn!(pod = context.pod.key(), "{message}");
            context.services.events.pod(&context.pod, EventType::Warning, "FailedMount", message);
        }
        complaint = complaints;
    }
}

async fn keep_limits(context: Arc<PodContext>, limited: Vec<Limited>) {
    let mut ticks = tokio::time::interval(MEASURE);
    loop {
        ticks.tick().await;
        for volume in &limited {
            let Ok(limit) = quantity::parse(&volume.limit) else { continue };
            let path = volume.path.clone();
            let used = tokio::task::spawn_blocking(move || local_storage::size(&path)).await.unwrap_or(0);
            if !limit.is_zero() && used > limit.ceil() {
                let Limited { volume, limit, .. } = volume;
                context.evict(
                    "emptydirfs.limit",
                    format!("Usage of EmptyDir volume \"{volume}\" exceeds the limit \"{limit}\"."),
                );
                return;
            }
        }
        if !local_storage::is_limited(&context.pod) || eviction::priority(&context.pod) >= eviction::CRITICAL {
            continue;
        }
        let (data, pod) = (context.services.data.clone(), context.pod.clone());
        let measured = tokio::task::spawn_blocking(move || LocalStorage::of(&data, &pod).exceeds(&pod));
        if let Ok(Some(message)) = measured.await {
            context.evict("ephemeralpodfs.limit", message);
            return;
        }
    }
}
