//! What was seen of a pod, from outside: facts that can be compared between two nodes.

use crate::differences::{ONCE, REPEATED};
use crate::fixture::DEADLINE;
use crate::side::{KINDS, Kind};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A fact's name, and what it is.
pub type Facts = BTreeMap<String, String>;

/// How long nothing may change before a pod counts as settled.
const QUIET: Duration = Duration::from_secs(3);

/// All versions of all pods of both nodes, as a watch tells them.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    histories: Arc<Mutex<BTreeMap<(Kind, String), History>>>,
    /// That pods of this node asked for.
    fields: Arc<Mutex<BTreeSet<String>>>,
    changed: watch::Sender<u64>,
}

/// What a watch has told of one pod.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub versions: Vec<(Instant, Value)>,
    pub gone: Option<Instant>,
}

impl History {
    pub fn last(&self) -> Option<&Value> {
        self.versions.last().map(|(_, pod)| pod)
    }
}

impl Recorder {
    pub fn start(client: &Client) -> Self {
        let recorder = Self {
            client: client.clone(),
            histories: Arc::default(),
            fields: Arc::default(),
            changed: watch::Sender::new(0),
        };
        for kind in KINDS {
            let (recorder, pods) = (recorder.clone(), Api::<Pod>::namespaced(client.clone(), kind.name()));
            tokio::spawn(async move {
                // With pauses: when the test ends, all connections of the client fail at once for ever, and a task that never
                // waits is never ended.
                let mut events = watcher(pods, watcher::Config::default()).default_backoff().boxed();
                while let Some(event) = events.next().await {
                    match event {
                        Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                            recorder.take(kind, &pod, false)
                        }
                        Ok(watcher::Event::Delete(pod)) => recorder.take(kind, &pod, true),
                        _ => {}
                    }
                }
            });
        }
        recorder
    }

    fn take(&self, kind: Kind, pod: &Pod, gone: bool) {
        let value = serde_json::to_value(pod).unwrap();
        let mut histories = self.histories.lock().unwrap();
        let history = histories.entry((kind, pod.name_any())).or_default();
        // A pod of the same name is another one.
        if history.last().is_some_and(|last| last["metadata"]["uid"] != value["metadata"]["uid"]) {
            *history = History::default();
        }
        history.versions.push((Instant::now(), value));
        history.gone = gone.then(Instant::now);
        drop(histories);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Notes the fields of a pod's spec as it is sent; what the API server fills in does not count.
    pub fn asked(&self, kind: Kind, spec: &Value) {
        if kind == Kind::Wasm {
            collect_fields("spec", spec, &mut self.fields.lock().unwrap());
        }
    }

    /// Whether a pod of this node asked for the field, `spec.containers[].name` for one; `[]` stands for any entry of a list.
    pub fn has_seen(&self, field: &str) -> bool {
        self.fields.lock().unwrap().contains(field)
    }

    pub fn history(&self, kind: Kind, pod: &str) -> History {
        self.histories.lock().unwrap().get(&(kind, pod.to_owned())).cloned().unwrap_or_default()
    }

    /// Names of the pods of a spec that are there: its own name, and what workloads make of it.
    pub fn pods(&self, kind: Kind, spec: &str) -> Vec<String> {
        let histories = self.histories.lock().unwrap();
        let there = histories
            .iter()
            .filter(|((of, name), history)| *of == kind && belongs(name, spec) && history.gone.is_none());
        there.map(|((_, name), _)| name.clone()).collect()
    }

    /// Waits until a pod's history satisfies `condition`; what it was if it does not come to that.
    pub async fn wait_for(&self, kind: Kind, pod: &str, condition: impl Fn(&History) -> bool) -> Result<(), String> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !condition(&self.history(kind, pod)) {
                changed.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(DEADLINE * 2, wait).await;
        waited.map_err(|_| match self.history(kind, pod).last() {
            Some(pod) => format!("{:#}", pod["status"]),
            None => "there is no such pod".to_owned(),
        })
    }

    /// Waits until a pod and its events have not changed for a while.
    pub async fn settle(&self, kind: Kind, pod: &str) {
        let deadline = Instant::now() + DEADLINE;
        let mut last = (0, 0);
        let mut since = Instant::now();
        while Instant::now() < deadline && since.elapsed() < QUIET {
            // What a kubelet repeats with each look does not count.
            let events = self.events(kind, pod).await;
            let reasons: BTreeSet<_> = events.into_iter().map(|event| event.reason).collect();
            let now = (self.history(kind, pod).versions.len(), reasons.len());
            if now != last {
                (last, since) = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn events(&self, kind: Kind, object: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), kind.name());
        let of = ListParams::default().fields(&format!("involvedObject.name={object}"));
        api.list(&of).await.map(|list| list.items).unwrap_or_default()
    }

    /// All that is compared of one pod.
    pub async fn facts(&self, kind: Kind, pod: &str, normalise: impl Fn(&str) -> String) -> Facts {
        let history = self.history(kind, pod);
        let mut facts = Facts::new();
        let Some(last) = history.last() else {
            facts.insert("pod".to_owned(), "never there".to_owned());
            return facts;
        };
        if std::env::var_os("TRACE").is_some() {
            trace(kind, pod, &history);
        }
        of_pod(&mut facts, &history, last, &normalise);
        for (list, role) in [("initContainerStatuses", "init "), ("containerStatuses", "")] {
            for container in last["status"][list].as_array().into_iter().flatten() {
                let name = container["name"].as_str().unwrap_or_default();
                of_container(&mut facts, &format!("{role}{name}"), list, container, last, &history, &normalise);
            }
        }
        let mut events = BTreeMap::<_, i64>::new();
        for event in self.events(kind, pod).await {
            if event.involved_object.uid.as_deref() != last["metadata"]["uid"].as_str() {
                continue;
            }
            // A kubelet whose cache is not filled yet; it tries again at once.
            let message = event.message.as_deref().unwrap_or_default();
            if ["failed to sync", "not registered"].iter().any(|hiccup| message.contains(hiccup)) {
                continue;
            }
            let what = format!("{} {}", event.type_.as_deref().unwrap_or(""), event.reason.as_deref().unwrap_or(""));
            *events.entry(what).or_default() += count(&event);
        }
        for (event, count) in events {
            facts.insert(format!("event {event}"), if count == 1 { ONCE } else { REPEATED }.to_owned());
        }
        facts
    }
}

fn collect_fields(path: &str, value: &Value, fields: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let path = format!("{path}.{name}");
                collect_fields(&path, value, fields);
                fields.insert(path);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect_fields(&format!("{path}[]"), value, fields)),
        _ => {}
    }
}

/// Each version of a pod, for whoever wonders how a fact came about.
fn trace(kind: Kind, pod: &str, history: &History) {
    let Some((start, _)) = history.versions.first() else { return };
    for (at, version) in &history.versions {
        let containers = ["initContainerStatuses", "containerStatuses"].into_iter();
        let containers = containers.flat_map(|list| version["status"][list].as_array().into_iter().flatten());
        let states: Vec<_> = containers.map(|container| state(&container["state"])).collect();
        let (phase, seconds) = (&version["status"]["phase"], (*at - *start).as_secs_f64());
        eprintln!("{} {pod} {seconds:.2} s: {phase} {states:?}", kind.name());
    }
    eprintln!("{} {pod} observed at {:.2} s", kind.name(), start.elapsed().as_secs_f64());
}

/// Whether an object of this name is of the spec.
pub fn belongs(name: &str, spec: &str) -> bool {
    name.strip_prefix(spec).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn count(event: &Event) -> i64 {
    let series = event.series.as_ref().and_then(|series| series.count);
    i64::from(event.count.into_iter().chain(series).max().unwrap_or(1).max(1))
}

fn of_pod(facts: &mut Facts, history: &History, last: &Value, normalise: &dyn Fn(&str) -> String) {
    let mut insert = |name: &str, value: String| facts.insert(name.to_owned(), value);
    let phases = history.versions.iter().filter_map(|(_, pod)| pod["status"]["phase"].as_str());
    insert("phases", sequence(phases));
    let status = &last["status"];
    for field in ["reason", "message"] {
        if let Some(text) = status[field].as_str() {
            insert(field, normalise(text));
        }
    }
    insert("qosClass", status["qosClass"].as_str().unwrap_or("(none)").to_owned());
    for field in fields(status) {
        insert(&format!("status field {field}"), "there".to_owned());
    }
    if !last["spec"]["resources"].is_null() {
        for field in ["resources", "allocatedResources"] {
            insert(&format!("{field} of the pod"), limited(&status[field]).to_string());
        }
    }
    let generation = &last["metadata"]["generation"];
    let observed = if status["observedGeneration"] == *generation { "the pod's" } else { "another" };
    insert("observedGeneration", observed.to_owned());
    let ended = ["Succeeded", "Failed"].iter().any(|phase| status["phase"] == *phase);
    let lists = ["containerStatuses", "initContainerStatuses"].map(|list| status[list].as_array());
    let containers = lists.into_iter().flatten().flatten();
    let was_restarted = containers.into_iter().any(|container| container["restartCount"].as_i64() > Some(0));
    let mut kinds = BTreeSet::new();
    for (_, pod) in &history.versions {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        kinds.extend(conditions.filter_map(|condition| condition["type"].as_str()));
    }
    // It passes; who is quick is not seen to do it.
    if find(&status["conditions"], "type", "PodResizeInProgress").is_none() {
        kinds.remove("PodResizeInProgress");
    }
    for kind in kinds {
        let condition = |pod: &Value| find(&pod["status"]["conditions"], "type", kind).cloned();
        let statuses: Vec<_> = history.versions.iter().filter_map(|(_, pod)| condition(pod)).collect();
        let sequence = sequence(statuses.iter().filter_map(|condition| condition["status"].as_str()));
        // A node may be so quick that nobody sees what a condition was at first, or between two runs of a container.
        let mut sequence = sequence.strip_prefix("False > ").unwrap_or(&sequence).to_owned();
        // A restart explains it; whether it is seen is a matter of milliseconds.
        while was_restarted && sequence.contains("True > False > True") {
            sequence = sequence.replace("True > False > True", "True");
        }
        // A kubelet tells this one when it has removed the pod's sandbox.
        if kind == "PodReadyToStartContainers" && ended {
            sequence = sequence.trim_end_matches(" > False").to_owned();
        }
        let last = condition(last).unwrap_or_default();
        insert(&format!("condition {kind}"), sequence);
        for field in ["reason", "message"] {
            if let Some(text) = last[field].as_str() {
                insert(&format!("condition {kind} {field}"), normalise(text));
            }
        }
        if last["observedGeneration"] != *generation {
            insert(&format!("condition {kind} observedGeneration"), "another".to_owned());
        }
    }
}

fn of_container(
    facts: &mut Facts,
    name: &str,
    list: &str,
    container: &Value,
    pod: &Value,
    history: &History,
    normalise: &dyn Fn(&str) -> String,
) {
    let mut insert = |what: &str, value: String| facts.insert(format!("container {name} {what}"), value);
    // Between two runs a kubelet shows the end of the last one, and later that it waits; both say the same.
    let (current, last) = (state(&container["state"]), state(&container["lastState"]));
    let ended = current.starts_with("terminated");
    let (current, last) = match current.as_str() {
        "waiting CrashLoopBackOff" => ("between two runs".to_owned(), last),
        "waiting ErrImagePull" | "waiting ImagePullBackOff" => {
            ("waiting for an image that is not to be had".to_owned(), last)
        }
        _ if ended && is_restarted(pod, &container["name"], list, &current) => ("between two runs".to_owned(), current),
        _ => (current, last),
    };
    insert("state", current);
    insert("last state", last);
    for field in ["ready", "started", "restartCount"] {
        insert(field, container[field].to_string());
    }
    let messages = ["state", "lastState"].map(|of| container[of]["terminated"]["message"].as_str());
    if let Some(message) = messages.into_iter().flatten().next() {
        insert("message of the last end", normalise(message));
    }
    for field in fields(container).filter(|field| field != "lastState") {
        insert(&format!("field {field}"), "there".to_owned());
    }
    for field in ["image", "imageID"] {
        insert(field, normalise(container[field].as_str().unwrap_or_default()));
    }
    let id = container["containerID"].as_str().unwrap_or_default();
    insert("containerID", id.split_once("://").map_or("(none)", |(runtime, _)| runtime).to_owned());
    for field in ["resources", "allocatedResources", "user"] {
        if !container[field].is_null() {
            insert(field, container[field].to_string());
        }
    }
    let plain_name = name.trim_start_matches("init ");
    let mut reasons = BTreeSet::new();
    for (_, pod) in &history.versions {
        let container = find(&pod["status"][list], "name", plain_name);
        reasons.extend(container.and_then(|container| container["state"]["waiting"]["reason"].as_str()));
    }
    // Who is quick is not seen to do these, and a kubelet may restart a container without saying the last one.
    for passing in ["ContainerCreating", "PodInitializing", "CrashLoopBackOff"] {
        reasons.remove(passing);
    }
    insert("waiting reasons", reasons.into_iter().collect::<Vec<_>>().join(", "));
}

impl History {
    /// How long the first container waited for a run, as its states say.
    pub fn pause_before(&self, run: i64) -> Option<Duration> {
        let time = |value: &Value| value.as_str()?.parse::<jiff::Timestamp>().ok();
        let containers = self.versions.iter().map(|(_, pod)| &pod["status"]["containerStatuses"][0]);
        let mut of_run = containers.filter(|container| container["restartCount"] == run);
        let running = of_run.find(|container| container["state"]["running"].is_object())?;
        let started = time(&running["state"]["running"]["startedAt"])?;
        let ended = time(&running["lastState"]["terminated"]["finishedAt"])?;
        Duration::try_from(started.duration_since(ended)).ok()
    }
}

/// Resources without limits that are none: a kubelet may tell the runtime's largest number, once it has looked.
fn limited(resources: &Value) -> Value {
    let mut resources = resources.clone();
    let Some(limits) = resources.get_mut("limits").and_then(Value::as_object_mut) else { return resources };
    limits.retain(|_, limit| limit != "9007199254740988Ki");
    if limits.is_empty() {
        resources.as_object_mut().unwrap().remove("limits");
    }
    resources
}

fn find<'a>(list: &'a Value, key: &str, wanted: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|entry| entry[key] == wanted)
}

fn state(state: &Value) -> String {
    if let Some(waiting) = state.get("waiting").filter(|value| !value.is_null()) {
        return format!("waiting {}", waiting["reason"].as_str().unwrap_or("(no reason)"));
    }
    if state.get("running").is_some_and(|value| !value.is_null()) {
        return "running".to_owned();
    }
    match state.get("terminated").filter(|value| !value.is_null()) {
        Some(ended) => {
            let signal = ended["signal"].as_i64().map_or(String::new(), |signal| format!(" signal {signal}"));
            format!("terminated {} {}{signal}", ended["reason"].as_str().unwrap_or("(no reason)"), ended["exitCode"])
        }
        None => "(none)".to_owned(),
    }
}

fn fields(object: &Value) -> impl Iterator<Item = String> {
    let there = object.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    there.map(|(name, _)| name.clone()).collect::<Vec<_>>().into_iter()
}

/// Whether a container that ended so is started again.
fn is_restarted(pod: &Value, name: &Value, list: &str, end: &str) -> bool {
    let well = end.ends_with(" 0");
    let stopped = ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase)
        || !pod["metadata"]["deletionTimestamp"].is_null();
    let policy = pod["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    let init = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let is_sidecar = init.into_iter().any(|one| one["name"] == *name && one["restartPolicy"] == "Always");
    if is_sidecar {
        return !stopped;
    }
    !stopped && (policy != "Never") && !(well && (policy == "OnFailure" || list == "initContainerStatuses"))
}

/// The values in order, without those that repeat the one before.
pub fn sequence<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let mut sequence: Vec<&str> = values.collect();
    sequence.dedup();
    sequence.join(" > ")
}
