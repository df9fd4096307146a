//! Statuses to the API server.

use super::{FileSink, RESIZE_IN_PROGRESS, RESIZE_PENDING, StatusSink};
use crate::cluster::EventRecorder;
use crate::cluster::connection::{code, describe, version};
use crate::cluster::events::EventType;
use crate::data_directory::DataDirectory;
use crate::pod::PodObject;
use akri_krustlet_host::BackOff;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Requests under way at most, for all pods together.
const CONCURRENT: usize = 16;
/// Pause after a request that failed, and the longest one, doubled in between.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often the last status of a pod that is being deleted is tried.
const MOST_FAILURES: u32 = 3;

/// Patches `status` of pods, and confirms deletions.
///
/// # Guarantees
/// - Of several statuses that come while one is being sent, the last one is sent.
/// - A status that the API server has already, from whichever run of the node, is not sent.
/// - What others have made of the status meanwhile is set right: it is compared with what the watch shows.
/// - A patch names the pod's UID: it never reaches another pod of the same name.
/// - What fails for the moment is tried until it succeeds or the pod is gone. What the API server refuses is told by an event and
///   tried again, without the field that it names, if it names one.
/// - Every status is in the data directory before it is sent.
#[derive(Clone)]
pub struct ApiSink {
    files: Arc<FileSink>,
    sender: Arc<Sender>,
}

struct Sender {
    client: Client,
    events: EventRecorder,
    pods: Mutex<HashMap<String, Entry>>,
    permits: Semaphore,
}

struct Entry {
    /// The status that the API server has, as far as we know, and in which version of the pod.
    known: Value,
    version: u64,
    /// Fields that the API server has refused, with the values that it did not take.
    refused: BTreeMap<String, Value>,
    /// How often another status was reported.
    reports: u64,
    /// How often in a row it answered that it does not take it.
    failures: u32,
    /// The one that it should have.
    wanted: Option<Value>,
    /// The pod is being deleted and its containers have ended.
    ended: bool,
    sending: bool,
}

impl ApiSink {
    /// A sink that keeps statuses in `data` as well, and tells by `events` what the API server refuses.
    pub fn new(client: Client, data: DataDirectory, events: EventRecorder) -> Self {
        let sender = Sender { client, events, pods: Mutex::default(), permits: Semaphore::new(CONCURRENT) };
        Self { files: Arc::new(FileSink::new(data)), sender: Arc::new(sender) }
    }

    /// Keeps a status in the data directory.
    pub(super) fn remember(&self, pod: &PodObject, status: &PodStatus) {
        self.files.report(pod, status);
    }

    /// Sends a status.
    pub(super) fn show(&self, pod: &PodObject, status: &PodStatus) {
        let status = serde_json::to_value(status).unwrap_or_default();
        self.sender.change(pod, |entry| {
            entry.wanted = Some(status);
            entry.reports += 1;
        });
    }
}

impl std::fmt::Debug for ApiSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiSink").field("files", &self.files).finish_non_exhaustive()
    }
}

impl StatusSink for ApiSink {
    fn report(&self, pod: &PodObject, status: &PodStatus) {
        self.remember(pod, status);
        self.show(pod, status);
    }

    fn seen(&self, pod: &PodObject, wanted: &dyn Fn() -> PodStatus) {
        let reports = {
            let mut pods = self.sender.pods();
            match pods.get_mut(pod.uid()) {
                // Nothing was reported of it yet.
                None => 0,
                Some(entry) => {
                    let version = version(&pod.api.metadata);
                    // The watch may tell late what we have changed since.
                    if version <= entry.version {
                        return;
                    }
                    entry.version = version;
                    entry.known = serde_json::to_value(&pod.api.status).unwrap_or_default();
                    if entry.wanted.is_some() {
                        return;
                    }
                    entry.reports
                }
            }
        };
        let wanted = serde_json::to_value(wanted()).unwrap_or_default();
        self.sender.change(pod, |entry| {
            // What was reported meanwhile is newer.
            if entry.reports == reports
                && entry.wanted.is_none()
                && patch(&entry.known, &wanted, &entry.refused).is_some()
            {
                entry.wanted = Some(wanted);
            }
        });
    }

    fn ended(&self, pod: &PodObject) {
        self.sender.change(pod, |entry| {
            entry.ended = true;
            entry.failures = 0;
        });
    }

    fn restored(&self) {
        self.sender.pods().values_mut().for_each(|entry| entry.version = 0);
    }

    fn is_told(&self) -> bool {
        self.sender.pods().values().all(|entry| !entry.sending)
    }

    fn forget(&self, uid: &str) {
        self.sender.pods().remove(uid);
    }
}

impl Sender {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(self: &Arc<Self>, pod: &PodObject, change: impl FnOnce(&mut Entry)) {
        let mut pods = self.pods();
        let entry = pods.entry(pod.uid().to_owned()).or_insert_with(|| Entry {
            known: serde_json::to_value(&pod.api.status).unwrap_or_default(),
            version: version(&pod.api.metadata),
            refused: BTreeMap::new(),
            reports: 0,
            failures: 0,
            wanted: None,
            ended: false,
            sending: false,
        });
        change(entry);
        if (entry.wanted.is_some() || entry.ended) && !std::mem::replace(&mut entry.sending, true) {
            tokio::spawn(send(self.clone(), pod.clone()));
        }
    }

    /// What is to be done for a pod now; `None` if nothing is.
    fn next(&self, uid: &str) -> Option<Work> {
        let mut pods = self.pods();
        let entry = pods.get_mut(uid)?;
        // A pod that is to go does not wait for a status that the API server does not take.
        if entry.ended && entry.failures >= MOST_FAILURES {
            entry.wanted = None;
        }
        if let Some(wanted) = entry.wanted.take()
            && let Some(patch) = patch(&entry.known, &wanted, &entry.refused)
        {
            return Some(Work::Patch { patch, wanted });
        }
        if std::mem::take(&mut entry.ended) {
            return Some(Work::Delete);
        }
        entry.sending = false;
        None
    }

    /// The API server has taken a patch, and this is the pod since.
    fn sent(&self, uid: &str, pod: &Pod) {
        if let Some(entry) = self.pods().get_mut(uid)
            && version(&pod.metadata) >= entry.version
        {
            entry.version = version(&pod.metadata);
            entry.failures = 0;
            entry.known = serde_json::to_value(&pod.status).unwrap_or_default();
        }
    }

    /// The API server does not take these fields as they are; true if that is news.
    fn refuse(&self, uid: &str, work: &Work, fields: impl Iterator<Item = String>) -> bool {
        let mut pods = self.pods();
        let (Some(entry), Work::Patch { wanted, .. }) = (pods.get_mut(uid), work) else { return false };
        entry.failures += 1;
        let refused = fields.filter_map(|field| Some((without_empty(wanted.get(&field)?), field)));
        let news =
            refused.filter(|(value, field)| entry.refused.insert(field.clone(), value.clone()).as_ref() != Some(value));
        news.count() > 0
    }

    /// Once more, unless something newer has come.
    fn put_back(&self, uid: &str, work: Work) {
        let mut pods = self.pods();
        let Some(entry) = pods.get_mut(uid) else { return };
        match work {
            Work::Patch { wanted, .. } => {
                entry.wanted.get_or_insert(wanted);
            }
            Work::Delete => entry.ended = true,
        }
    }
}

enum Work {
    Patch { patch: Value, wanted: Value },
    Delete,
}

/// Sends what there is for one pod, then ends.
async fn send(sender: Arc<Sender>, pod: PodObject) {
    let uid = pod.uid().to_owned();
    let api: Api<Pod> = Api::namespaced(sender.client.clone(), pod.namespace());
    let mut back_off = BackOff::new(FIRST_PAUSE, LONGEST_PAUSE);
    while let Some(work) = sender.next(&uid) {
        let result = {
            let _permit = sender.permits.acquire().await;
            match &work {
                Work::Patch { patch, .. } => {
                    let body = json!({"metadata": {"uid": uid}, "status": patch});
                    api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(body)).await.map(Some)
                }
                Work::Delete => {
                    let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                    let parameters =
                        DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }.grace_period(0);
                    api.delete(pod.name(), &parameters).await.map(|_| None)
                }
            }
        };
        let error = match result {
            Ok(patched) => {
                match patched {
                    Some(patched) => sender.sent(&uid, &patched),
                    None => tracing::debug!(pod = pod.key(), "deletion confirmed"),
                }
                back_off.reset();
                continue;
            }
            Err(error) => error,
        };
        match code(&error) {
            // The pod is gone, or another one has its name; the watch tells.
            Some(404 | 409) => {}
            Some(400 | 403 | 422) => {
                let message = describe(&error);
                tracing::error!(pod = pod.key(), "the API server refuses the pod's status: {message}");
                let told = format!("the API server refuses the pod's status: {message}");
                sender.events.pod(&pod, EventType::Warning, "FailedToUpdateStatus", told);
                let named = sender.refuse(&uid, &work, refused_fields(&error));
                sender.put_back(&uid, work);
                if !named {
                    tokio::time::sleep(LONGEST_PAUSE).await;
                }
            }
            _ => {
                tracing::debug!(pod = pod.key(), "the pod's status is not sent yet: {}", describe(&error));
                sender.put_back(&uid, work);
                tokio::time::sleep(back_off.pause()).await;
            }
        }
    }
}

/// The fields of the status that a refusal names: `qosClass` of `status.qosClass`.
fn refused_fields(error: &kube::Error) -> impl Iterator<Item = String> {
    let kube::Error::Api(status) = error else { return Vec::new().into_iter() };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let fields = causes.filter_map(|cause| {
        let field = cause.field.strip_prefix("status.")?;
        Some(field.split(['.', '[']).next().unwrap_or(field).to_owned())
    });
    fields.collect::<Vec<_>>().into_iter()
}

/// Conditions of our own that are there for a time. All others that the node does not name are somebody else's.
const OF_A_TIME: [&str; 2] = [RESIZE_PENDING, RESIZE_IN_PROGRESS];

/// What makes `known` into `wanted`, as a strategic merge patch: conditions are merged by their type, so that those of others
/// stay; other lists and all else are replaced. `None` if nothing is different but what is `refused`. The quality-of-service class is
/// the API server's own.
fn patch(known: &Value, wanted: &Value, refused: &BTreeMap<String, Value>) -> Option<Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    let known = known.as_object().unwrap_or(&EMPTY);
    let wanted = wanted.as_object()?;
    let mut patch = Map::new();
    for (field, value) in wanted {
        let old = known.get(field);
        let is_refused = refused.get(field).is_some_and(|refused| *refused == without_empty(value));
        if field == "qosClass" || is_refused || old.map(without_empty) == Some(without_empty(value)) {
            continue;
        }
        let empty = value.as_array().is_some_and(Vec::is_empty);
        if empty && old.is_none() {
            continue;
        }
        match (field.as_str(), value) {
            ("conditions", Value::Array(conditions)) => {
                let old: Vec<_> = old.and_then(Value::as_array).into_iter().flatten().map(without_empty).collect();
                let is_gone = |kind: &&str| {
                    let has = |list: &[Value]| list.iter().any(|condition| condition["type"] == **kind);
                    has(&old) && !has(conditions)
                };
                let gone =
                    OF_A_TIME.iter().copied().filter(is_gone).map(|kind| json!({"$patch": "delete", "type": kind}));
                let changed = conditions.iter().filter(|condition| !old.contains(&without_empty(condition)));
                let changed: Vec<_> = changed.map(with_nulls).chain(gone).collect();
                if !changed.is_empty() {
                    patch.insert(field.clone(), Value::Array(changed));
                }
            }
            // These merge by address, and would keep an address that the node does not have any more.
            ("hostIPs" | "podIPs", Value::Array(addresses)) if old.is_some() => {
                let replaced = [json!({"$patch": "replace"})].into_iter().chain(addresses.iter().cloned());
                patch.insert(field.clone(), replaced.collect());
            }
            _ => {
                patch.insert(field.clone(), value.clone());
            }
        }
    }
    for field in ["reason", "message"] {
        if known.contains_key(field) && !wanted.contains_key(field) {
            patch.insert(field.to_owned(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The API server says `lastState: {}` where there is none: what is empty makes no difference.
fn without_empty(value: &Value) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(object) => object.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(object) => {
            let kept = object.iter().map(|(name, value)| (name.clone(), without_empty(value)));
            Value::Object(kept.filter(|(_, value)| !is_empty(value)).collect())
        }
        Value::Array(list) => list.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

/// A condition whose reason or message went says so.
fn with_nulls(condition: &Value) -> Value {
    let mut condition = condition.clone();
    if let Some(fields) = condition.as_object_mut() {
        for field in ["reason", "message"] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_sent_and_conditions_of_others_stay() {
        let known = json!({"phase": "Pending", "reason": "X", "podIPs": [{"ip": "a"}],
            "conditions": [{"type": "A", "status": "True"}, {"type": "Other", "status": "True"}]});
        assert_eq!(patch(&known, &known, &BTreeMap::new()), None);
        let wanted = json!({"phase": "Running", "podIPs": [{"ip": "b"}], "initContainerStatuses": [],
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]});
        let expected = json!({"phase": "Running", "reason": null, "podIPs": [{"$patch": "replace"}, {"ip": "b"}],
            "conditions": [{"type": "B", "status": "True", "reason": null, "message": null}]});
        assert_eq!(patch(&known, &wanted, &BTreeMap::new()), Some(expected));
        assert!(patch(&Value::Null, &wanted, &BTreeMap::new()).is_some());
        let but_phase = patch(&known, &wanted, &BTreeMap::from([("phase".to_owned(), json!("Running"))])).unwrap();
        assert!(but_phase.get("phase").is_none() && but_phase.get("podIPs").is_some());
        let (sent, told) = (json!({"x": [{"state": {"waiting": {}}}]}), json!({"x": [{"lastState": {}, "state": {}}]}));
        assert_eq!(patch(&told, &sent, &BTreeMap::new()), None, "what is empty makes no difference");
        assert_eq!(patch(&json!({}), &json!({"qosClass": "Burstable"}), &BTreeMap::new()), None);
        let resizing = json!({"conditions": [{"type": "PodResizePending", "status": "True"}, {"type": "Other", "status": "True"}]});
        let gone = json!({"conditions": [{"$patch": "delete", "type": "PodResizePending"}]});
        assert_eq!(patch(&resizing, &json!({"conditions": []}), &BTreeMap::new()), Some(gone));
    }
}
