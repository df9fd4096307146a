//! ConfigMaps and Secrets that pods on this node refer to.
//!
//! # Guarantees
//! - Nothing is asked for but what a pod on the node names; the API server refuses a node anything else.
//! - One watch for each object, however many pods refer to it, as long as one of them does.
//! - What has been read stays while the API server is away.

use crate::cluster::History;
use crate::cluster::connection::{describe, watch_back_off};
use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Values by their keys.
pub type Values = BTreeMap<String, Vec<u8>>;

/// Of the two kinds, which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// Public values.
    ConfigMap,
    /// Private ones.
    Secret,
}

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace: that of the pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ObjectKind::ConfigMap => "configmap",
            ObjectKind::Secret => "secret",
        };
        write!(f, "{kind} \"{}\"", self.name)
    }
}

/// Why an object cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// It does not exist.
    #[error("{0} not found")]
    Missing(ObjectKey),
    /// The node has none.
    #[error("{0}: a node without a cluster has no ConfigMaps and Secrets; give the pod values and hostPath volumes")]
    NoCluster(ObjectKey),
    /// The API server has not told it.
    #[error("{key}: {message}")]
    Unknown {
        /// The object.
        key: ObjectKey,
        /// What the API server said, or that it did not.
        message: String,
    },
}

/// How long a pod's start waits for the first answer about an object.
const ANSWER: Duration = Duration::from_secs(10);

/// The objects that are watched.
#[derive(Default)]
pub struct Objects {
    cluster: Option<(Client, History)>,
    watched: Mutex<HashMap<ObjectKey, Weak<WatchedObject>>>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Nothing { message: String },
    Missing,
    Present(Arc<Values>),
}

/// One object, watched until this is dropped.
#[derive(Debug)]
pub struct WatchedObject {
    key: ObjectKey,
    known: watch::Receiver<Known>,
    task: tokio::task::AbortHandle,
}

impl Drop for WatchedObject {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Objects {
    /// Those of a cluster; without one every object is an error.
    pub fn new(cluster: Option<(Client, History)>) -> Self {
        Self { cluster, watched: Mutex::default() }
    }

    /// Watches an object.
    pub fn watch(&self, key: &ObjectKey) -> Result<Arc<WatchedObject>, ObjectError> {
        let Some((client, history)) = &self.cluster else { return Err(ObjectError::NoCluster(key.clone())) };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = watched.get(key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let (sender, known) = watch::channel(Known::Nothing { message: "the API server does not answer".to_owned() });
        let task = match key.kind {
            ObjectKind::ConfigMap => tokio::spawn(follow(
                Api::<ConfigMap>::namespaced(client.clone(), &key.namespace),
                history.clone(),
                key.name.clone(),
                sender,
            )),
            ObjectKind::Secret => tokio::spawn(follow(
                Api::<Secret>::namespaced(client.clone(), &key.namespace),
                history.clone(),
                key.name.clone(),
                sender,
            )),
        };
        let object = Arc::new(WatchedObject { key: key.clone(), known, task: task.abort_handle() });
        watched.retain(|_, object| object.strong_count() > 0);
        watched.insert(key.clone(), Arc::downgrade(&object));
        Ok(object)
    }
}

impl WatchedObject {
    /// Its values as they are now.
    pub async fn read(&self) -> Result<Arc<Values>, ObjectError> {
        let mut known = self.known.clone();
        let told = known.wait_for(|known| !matches!(known, Known::Nothing { .. }));
        let _ = tokio::time::timeout(ANSWER, told).await;
        let known = self.known.borrow().clone();
        match known {
            Known::Present(values) => Ok(values),
            Known::Missing => Err(ObjectError::Missing(self.key.clone())),
            Known::Nothing { message } => Err(ObjectError::Unknown { key: self.key.clone(), message }),
        }
    }

    /// Its changes from now on, and perhaps one before.
    fn changes(&self) -> Changes {
        Changes(self.known.clone())
    }
}

/// Tells when an object changes.
#[derive(Debug)]
struct Changes(watch::Receiver<Known>);

impl Changes {
    /// What was before does not count.
    fn forget(&mut self) {
        self.0.mark_unchanged();
    }

    /// Resolves when it has.
    async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Objects that something waits for; they are watched as long as this is kept.
#[derive(Debug, Default)]
pub struct Awaited(Vec<(Arc<WatchedObject>, Changes)>);

impl Awaited {
    /// One more, whose changes from now on count.
    pub fn add(&mut self, object: Arc<WatchedObject>) {
        let mut changes = object.changes();
        changes.forget();
        self.0.push((object, changes));
    }

    /// Resolves when one of them has changed.
    pub async fn changed(&mut self) {
        let changes: Vec<_> = self.0.iter_mut().map(|(_, changes)| Box::pin(changes.next())).collect();
        if changes.is_empty() {
            std::future::pending::<()>().await;
        }
        futures::future::select_all(changes).await;
    }
}

/// An object with values.
trait HasValues {
    fn values(self) -> Values;
}

impl HasValues for ConfigMap {
    fn values(self) -> Values {
        let text = self.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
        let binary = self.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
        text.chain(binary).collect()
    }
}

impl HasValues for Secret {
    fn values(self) -> Values {
        self.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect()
    }
}

async fn follow<K>(api: Api<K>, history: History, name: String, known: watch::Sender<Known>)
where
    K: Resource<Scope = NamespaceResourceScope> + HasValues + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    // A node may list and watch an object by its name only.
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = history.follow(move || watcher(api.clone(), config.clone()).backoff(watch_back_off()));
    let mut listed = false;
    let set = |new: Known| {
        known.send_if_modified(|known| {
            let changed = *known != new;
            *known = new;
            changed
        });
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = false,
            Ok(watcher::Event::InitApply(object)) => {
                listed = true;
                set(Known::Present(Arc::new(object.values())));
            }
            Ok(watcher::Event::InitDone) if !listed => set(Known::Missing),
            Ok(watcher::Event::InitDone) => {}
            Ok(watcher::Event::Apply(object)) => set(Known::Present(Arc::new(object.values()))),
            Ok(watcher::Event::Delete(_)) => set(Known::Missing),
            Err(error) => {
                if matches!(*known.borrow(), Known::Nothing { .. }) {
                    set(Known::Nothing { message: message_of(&error) });
                }
            }
        }
    }
}

fn message_of(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => describe(error),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn what_was_before_is_no_change() {
        let (sender, known) = watch::channel(Known::Nothing { message: String::new() });
        sender.send_replace(Known::Missing);
        let mut changes = Changes(known);
        changes.forget();
        assert!(changes.next().now_or_never().is_none());
        sender.send_replace(Known::Present(Arc::default()));
        assert!(changes.next().now_or_never().is_some());
        assert!(changes.next().now_or_never().is_none());
    }
}
