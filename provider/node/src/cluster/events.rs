//! Events, as `kubectl describe` shows them.
//!
//! # Guarantees
//! - An event that repeats is one object with a count.
//! - Of one object at most 25 events at once and one more every five minutes are sent, as a kubelet does.
//! - Whoever reports an event never waits; what the API server does not take in time is dropped, not the pod's work.

use super::connection::{code, describe};
use crate::pod::PodObject;
use crate::status::ContainerKind;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Why, in one word; most are known beforehand.
type Reason = std::borrow::Cow<'static, str>;

/// Events that wait to be sent, at most, by each of those that send.
const QUEUE: usize = 250;
/// Events are sent so many at a time, those of one object in order.
const SENDERS: usize = 4;
/// Events of one object that may come at once.
const BURST: f64 = 25.0;
/// Time in which one more may come.
const REFILL: Duration = Duration::from_secs(300);
/// An event that was last seen this long ago begins anew.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Events, and objects that had some, that each sender remembers at most.
const MOST_REMEMBERED: usize = 1024;
/// Longest message, in bytes; the API's bound.
const MOST_MESSAGE: usize = 1024;
/// Events that are kept for whoever looks.
const MOST_RECENT: usize = 50;

/// Takes events. Cheap to clone; of a node without a cluster, it drops them.
#[derive(Clone, Debug, Default)]
pub struct EventRecorder {
    queues: Arc<[mpsc::Sender<Report>]>,
    recent: Arc<Mutex<VecDeque<RecentEvent>>>,
}

/// An event that was reported lately, for whoever looks at the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecentEvent {
    /// When, in seconds of Unix time.
    pub at: u64,
    /// Somebody should look.
    pub warning: bool,
    /// `namespace/name` of its object; the node's name.
    pub object: String,
    /// Why, in one word.
    pub reason: String,
    /// What it says.
    pub message: String,
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Nothing to worry about.
    Normal,
    /// Something is not as it should be.
    Warning,
}

#[derive(Debug)]
struct Report {
    object: ObjectReference,
    kind: EventType,
    reason: Reason,
    message: String,
    at: Time,
    /// Those with the same one share a number of events.
    budget: String,
}

impl EventRecorder {
    /// A recorder that sends with `client`; `node` is the events' source.
    pub fn start(client: Client, node: &str) -> Self {
        let start = |_| {
            let (queue, reports) = mpsc::channel(QUEUE);
            tokio::spawn(send(client.clone(), node.to_owned(), reports));
            queue
        };
        Self { queues: (0..SENDERS).map(start).collect(), recent: Arc::default() }
    }

    /// An event of a pod.
    pub fn pod(&self, pod: &PodObject, kind: EventType, reason: impl Into<Reason>, message: impl Into<String>) {
        self.report(reference(pod, None), kind, reason.into(), message.into());
    }

    /// An event of one container of a pod.
    pub fn container(
        &self,
        pod: &PodObject,
        (list, container): (ContainerKind, &str),
        kind: EventType,
        reason: impl Into<Reason>,
        message: impl Into<String>,
    ) {
        let list = match list {
            ContainerKind::Init => "initContainers",
            ContainerKind::App => "containers",
        };
        self.report(reference(pod, Some(format!("spec.{list}{{{container}}}"))), kind, reason.into(), message.into());
    }

    /// An event of the node itself.
    pub fn node(&self, name: &str, kind: EventType, reason: impl Into<Reason>, message: impl Into<String>) {
        // A kubelet gives its node's name as the UID, and kubectl looks for it.
        let (name, uid) = (Some(name.to_owned()), Some(name.to_owned()));
        let object = ObjectReference { kind: Some("Node".to_owned()), name, uid, ..ObjectReference::default() };
        self.report(object, kind, reason.into(), message.into());
    }

    /// An event of another object; of one `budget` no more are sent than of one object.
    pub fn object(
        &self,
        object: ObjectReference,
        budget: &str,
        kind: EventType,
        reason: &'static str,
        message: String,
    ) {
        self.report_of(object, budget.to_owned(), kind, reason.into(), message);
    }

    fn report(&self, object: ObjectReference, kind: EventType, reason: Reason, message: String) {
        let budget = object.uid.clone().unwrap_or_default();
        self.report_of(object, budget, kind, reason, message);
    }

    fn report_of(&self, object: ObjectReference, budget: String, kind: EventType, reason: Reason, mut message: String) {
        message.truncate(message.floor_char_boundary(MOST_MESSAGE));
        self.remember(&object, kind, &reason, &message);
        if self.queues.is_empty() {
            return;
        }
        let mut hasher = std::hash::DefaultHasher::new();
        budget.hash(&mut hasher);
        let queue = &self.queues[hasher.finish() as usize % self.queues.len()];
        if queue.try_send(Report { object, kind, reason, message, at: crate::status::now(), budget }).is_err() {
            tracing::debug!("an event is dropped: too many wait for the API server");
        }
    }
}

impl EventRecorder {
    fn remember(&self, object: &ObjectReference, kind: EventType, reason: &Reason, message: &str) {
        let name = object.name.as_deref().unwrap_or_default();
        let event = RecentEvent {
            at: u64::try_from(crate::status::now().0.as_second()).unwrap_or(0),
            warning: kind == EventType::Warning,
            object: object
                .namespace
                .as_ref()
                .map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}")),
            reason: reason.to_string(),
            message: message.to_owned(),
        };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == MOST_RECENT {
            recent.pop_front();
        }
        recent.push_back(event);
    }

    /// Those that were reported lately, the newest first.
    pub fn recent(&self) -> Vec<RecentEvent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

fn reference(pod: &PodObject, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace().to_owned()),
        name: Some(pod.name().to_owned()),
        uid: Some(pod.uid().to_owned()),
        resource_version: pod.api.metadata.resource_version.clone(),
        field_path,
    }
}

/// An event that was sent.
struct Sent {
    /// What of its name comes after the object's.
    serial: Serial,
    count: i32,
    last: Instant,
}

/// Other for each event.
#[derive(Clone, Copy)]
struct Serial {
    nanoseconds: i64,
    number: u32,
}

impl Serial {
    fn name(self, object: Option<&str>) -> String {
        let object: String = object.unwrap_or_default().chars().take(200).collect();
        format!("{object}.{:x}{:x}", self.nanoseconds, self.number)
    }
}

/// How many events an object may still have.
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let refilled = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        (self.left, self.at) = ((self.left + refilled).min(BURST), now);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// What was sent lately, by a hash of what tells one from the other: a node that has many pods in an hour has many events.
struct Remembered<T> {
    entries: HashMap<u64, T>,
    last: fn(&T) -> Instant,
}

impl<T> Remembered<T> {
    fn new(last: fn(&T) -> Instant) -> Self {
        Self { entries: HashMap::new(), last }
    }

    fn insert(&mut self, key: u64, entry: T) -> &mut T {
        let last = self.last;
        self.entries.retain(|_, entry| last(entry).elapsed() < FORGOTTEN);
        if self.entries.len() >= MOST_REMEMBERED
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| last(entry)).map(|(key, _)| *key)
        {
            self.entries.remove(&oldest);
        }
        self.entries.entry(key).insert_entry(entry).into_mut()
    }

    fn get(&mut self, key: u64) -> Option<&mut T> {
        let last = self.last;
        self.entries.get_mut(&key).filter(|entry| last(entry).elapsed() < FORGOTTEN)
    }
}

async fn send(client: Client, node: String, mut reports: mpsc::Receiver<Report>) {
    let mut sent = Remembered::new(|sent: &Sent| sent.last);
    let mut budgets = Remembered::new(|budget: &Budget| budget.at);
    let hasher = std::hash::RandomState::new();
    let mut number = 0;
    while let Some(report) = reports.recv().await {
        let (now, object) = (Instant::now(), &report.object);
        let key = hasher.hash_one(&report.budget);
        let budget = match budgets.get(key) {
            Some(budget) => budget,
            None => budgets.insert(key, Budget { left: BURST, at: now }),
        };
        if !budget.take(now) {
            tracing::debug!(reason = %report.reason, "an event is dropped: the object has had too many");
            continue;
        }
        let key = hasher.hash_one((&report.budget, &object.field_path, report.kind, &report.reason, &report.message));
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Some(known) = sent.get(key) {
            known.count += 1;
            known.last = now;
            let name = known.serial.name(object.name.as_deref());
            let patch = serde_json::json!({"count": known.count, "lastTimestamp": report.at});
            let patched = with_patience(|| async {
                let patched = events.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
                patched.map(|_| ())
            });
            if patched.await {
                continue;
            }
            // It has expired there.
        }
        number += 1;
        let nanoseconds = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default();
        let serial = Serial { nanoseconds, number };
        let event = event(&node, &serial.name(object.name.as_deref()), &namespace, report);
        if with_patience(|| async { events.create(&PostParams::default(), &event).await.map(|_| ()) }).await {
            sent.insert(key, Sent { serial, count: 1, last: now });
        }
    }
}

/// Tries until the API server answers, for two minutes at most; true if it agreed.
async fn with_patience<F>(mut request: impl FnMut() -> F) -> bool
where
    F: Future<Output = Result<(), kube::Error>>,
{
    for _ in 0..12 {
        match request().await {
            Ok(()) => return true,
            Err(error) if code(&error).is_some() => {
                tracing::debug!("an event is not taken: {}", describe(&error));
                return false;
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(10)).await,
        }
    }
    false
}

fn event(node: &str, name: &str, namespace: &str, report: Report) -> Event {
    let kind = match report.kind {
        EventType::Normal => "Normal",
        EventType::Warning => "Warning",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: report.object,
        type_: Some(kind.to_owned()),
        reason: Some(report.reason.into_owned()),
        message: Some(report.message),
        count: Some(1),
        first_timestamp: Some(report.at.clone()),
        last_timestamp: Some(report.at),
        source: Some(EventSource { component: Some("akri-krustlet".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("akri-krustlet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_burst_of_events_and_then_one_in_five_minutes() {
        let start = Instant::now();
        let mut budget = Budget { left: BURST, at: start };
        assert_eq!((0..100).filter(|_| budget.take(start)).count(), 25);
        assert!(!budget.take(start + REFILL / 2));
        assert!(budget.take(start + REFILL));
        assert!(!budget.take(start + REFILL));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let start = Instant::now();
        let mut remembered = Remembered::new(|budget: &Budget| budget.at);
        for number in 0..=MOST_REMEMBERED as u64 {
            remembered.insert(number, Budget { left: 1.0, at: start + Duration::from_millis(number) });
        }
        assert_eq!(remembered.entries.len(), MOST_REMEMBERED);
        assert!(remembered.get(0).is_none() && remembered.get(1).is_some());
    }
}
