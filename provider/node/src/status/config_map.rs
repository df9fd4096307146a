//! Statuses of a node without a cluster of its own, told to the cluster that it runs in as a pod: a ConfigMap, and its events.
//!
//! # Guarantees
//! - The rights that it needs are those to patch one ConfigMap, and to make events in its namespace.
//! - Changes of a second are one patch; without a change nothing is sent. What cannot be sent is tried again, ever more seldom.
//! - An entry has at most 4 KiB, and there are at most 200.

use super::{DISCOVERY_HEALTHY, FileSink, StatusSink};
use crate::cluster::connection::describe;
use crate::cluster::events::{EventRecorder, EventType};
use crate::data_directory::DataDirectory;
use crate::pod::PodObject;
use akri_krustlet_host::BackOff;
use akri_krustlet_runtime::Digest;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, PodStatus};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Changes that come within this time are sent together.
const TOGETHER: Duration = Duration::from_secs(1);
/// Pauses after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Entries, and bytes of one; a byte of what is wrong may take six when it is quoted.
const MOST: usize = 200;
const MOST_BYTES: usize = 4096;
/// Letters of a key; the API's bound.
const MOST_KEY: usize = 253;
/// Who wrote it, for the API server.
const FIELD_MANAGER: &str = "akri-krustlet";

/// Writes statuses to the data directory and into a ConfigMap.
#[derive(Debug)]
pub struct ConfigMapSink {
    files: FileSink,
    told: Arc<Told>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Told {
    events: EventRecorder,
    object: ObjectReference,
    /// By their keys.
    pods: Mutex<BTreeMap<String, Entry>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Entry {
    /// The pod's; of two pods of one name the one that was told of last counts.
    uid: String,
    text: String,
    /// What was wrong when it was told last.
    trouble: Option<String>,
}

impl ConfigMapSink {
    /// Into the ConfigMap of this name, which may be there or not. Must be called in a runtime.
    pub fn start(client: Client, node: &str, (namespace, name): (&str, &str), data: DataDirectory) -> Self {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        let events = EventRecorder::start(client.clone(), node);
        let told = Arc::new(Told { events, object, pods: Mutex::default(), changed: Notify::new() });
        let api = Api::namespaced(client, namespace);
        let task = tokio::spawn(send(api, name.to_owned(), told.clone()));
        Self { files: FileSink::new(data), told, _task: AbortOnDropHandle::new(task) }
    }
}

impl StatusSink for ConfigMapSink {
    fn report(&self, pod: &PodObject, status: &PodStatus) {
        self.files.report(pod, status);
        let trouble = trouble(status);
        let entry = Entry { uid: pod.uid().to_owned(), text: text(status), trouble: trouble.clone() };
        let key = key(pod);
        let old = {
            let mut pods = self.told.pods.lock().unwrap_or_else(PoisonError::into_inner);
            if pods.len() >= MOST && !pods.contains_key(&key) {
                return;
            }
            pods.insert(key.clone(), entry)
        };
        if old.and_then(|old| old.trouble) != trouble {
            let is_handler = status.conditions.iter().flatten().any(|one| one.type_ == DISCOVERY_HEALTHY);
            let (kind, reason, message) = match (trouble, is_handler) {
                (Some(trouble), true) => {
                    (EventType::Warning, "DiscoveryUnhealthy", format!("{}: {trouble}", pod.key()))
                }
                (Some(trouble), false) => (EventType::Warning, "NotRunning", format!("{}: {trouble}", pod.key())),
                (None, true) => (EventType::Normal, "DiscoveryHealthy", format!("{}: its devices are used", pod.key())),
                (None, false) => (EventType::Normal, "Running", format!("{}: it runs", pod.key())),
            };
            self.told.events.object(self.told.object.clone(), &key, kind, reason, message);
        }
        self.told.changed.notify_one();
    }

    fn forget(&self, uid: &str) {
        self.told.pods.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, entry| entry.uid != uid);
        self.told.changed.notify_one();
    }
}

/// `namespace.name`, which neither of them can make ambiguous: a namespace has no dot. What is longer than a key may be ends with
/// the pod's digest.
fn key(pod: &PodObject) -> String {
    let mut key = format!("{}.{}", pod.namespace(), pod.name());
    if key.len() > MOST_KEY {
        let digest = Digest::of(key.as_bytes());
        key.truncate(key.floor_char_boundary(MOST_KEY - 20));
        key = format!("{key}.{}", &digest.hex()[..16]);
    }
    key
}

/// Why the pod does not do what it is there for, if it does not.
fn trouble(status: &PodStatus) -> Option<String> {
    let unhealthy =
        |kind: &str| status.conditions.iter().flatten().find(|one| one.type_ == kind && one.status == "False");
    if let Some(condition) = unhealthy(DISCOVERY_HEALTHY) {
        return Some(condition.message.clone().or_else(|| condition.reason.clone()).unwrap_or_default());
    }
    let containers =
        || status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting = containers().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason =
            waiting.reason.as_deref().filter(|reason| !["ContainerCreating", "PodInitializing"].contains(reason))?;
        Some(format!("container {}: {reason}: {}", container.name, waiting.message.as_deref().unwrap_or_default()))
    });
    let failed = || {
        let reason = status.reason.as_deref().unwrap_or("Failed");
        (status.phase.as_deref() == Some("Failed"))
            .then(|| format!("{reason}: {}", status.message.as_deref().unwrap_or_default()))
    };
    waiting.or_else(failed)
}

/// What people read.
fn text(status: &PodStatus) -> String {
    let is_ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let restarts: i32 = containers.map(|container| container.restart_count).sum();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let mut text = format!("phase: {phase}\nready: {is_ready}\nrestarts: {restarts}\n");
    if let Some(mut trouble) = trouble(status) {
        trouble.truncate(trouble.floor_char_boundary(MOST_BYTES / 8));
        // Writing to a string does not fail.
        let _ = writeln!(text, "trouble: {}", json!(trouble));
    }
    text
}

async fn send(api: Api<ConfigMap>, name: String, told: Arc<Told>) {
    let mut back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1);
    // What an earlier life of the node said is replaced also by nothing.
    let mut sent: Option<BTreeMap<String, String>> = None;
    told.changed.notify_one();
    let mut is_told = false;
    loop {
        told.changed.notified().await;
        tokio::time::sleep(TOGETHER).await;
        loop {
            let data: BTreeMap<_, _> = {
                let pods = told.pods.lock().unwrap_or_else(PoisonError::into_inner);
                pods.iter().map(|(key, entry)| (key.clone(), entry.text.clone())).collect()
            };
            if sent.as_ref() == Some(&data) {
                break;
            }
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "akri-krustlet"}}});
            // What this process wrote before and does not say any more goes with it.
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            match api.patch(&name, &parameters, &Patch::Apply(&object)).await {
                Ok(_) => {
                    sent = Some(data);
                    back_off.reset();
                    is_told = false;
                    break;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        let error = describe(&error);
                        tracing::error!(
                            config_map = name,
                            "the statuses cannot be told to the cluster, they are tried again: {error}; the service account needs the rights of manifests/handler-mode"
                        );
                    }
                    tokio::time::sleep(back_off.pause()).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn told(status: Value) -> (Option<String>, String) {
        let status: PodStatus = serde_json::from_value(status).unwrap();
        (trouble(&status), text(&status))
    }

    #[test]
    fn a_key_is_one_that_a_config_map_may_have() {
        let key = |name: &str| {
            let pod = json!({"metadata": {"name": name, "namespace": "ns"}});
            key(&PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None })
        };
        assert_eq!(key("short"), "ns.short");
        let (one, other) = (key(&"a".repeat(252)), key(&"a".repeat(253)));
        assert!(one.len() <= MOST_KEY && other.len() <= MOST_KEY && one != other, "{one} {other}");
    }

    #[test]
    fn what_is_wrong_with_a_pod_is_told_in_one_entry() {
        let ready = json!({"type": "Ready", "status": "True"});
        let healthy = told(json!({"phase": "Running", "conditions": [ready]}));
        assert_eq!(healthy, (None, "phase: Running\nready: true\nrestarts: 0\n".to_owned()));
        let bad = json!({"type": "DiscoveryHealthy", "status": "False", "message": "a\nb: \"c\""});
        let (trouble, text) = told(json!({"phase": "Running", "conditions": [ready, bad]}));
        assert_eq!(trouble.as_deref(), Some("a\nb: \"c\""));
        assert!(text.ends_with("trouble: \"a\\nb: \\\"c\\\"\"\n"), "{text}");
        let waiting = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}});
        let (trouble, text) = told(json!({"phase": "Pending", "containerStatuses": [waiting]}));
        assert_eq!(trouble.as_deref(), Some("container main: ImagePullBackOff: no such image"));
        assert!(text.contains("restarts: 3\n"), "{text}");
        let long = "\u{1}".repeat(10_000);
        let (_, text) = told(json!({"phase": "Failed", "reason": "R", "message": long}));
        assert!(text.len() < MOST_BYTES && text.ends_with("\"\n"), "{}", text.len());
        let (trouble, _) = told(json!({"phase": "Failed", "reason": "FailedValidation", "message": "no"}));
        assert_eq!(trouble.as_deref(), Some("FailedValidation: no"));
    }
}
