//! A spec: a pod, or what makes pods, and what is done with it; the same on both nodes.

use crate::observation::{Facts, History, Recorder};
use crate::side::{Kind, Scene};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// No spec takes so long.
const AT_MOST: Duration = Duration::from_secs(600);

type Scenario = Box<dyn Fn(Arc<Run>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

pub struct Spec {
    pub name: String,
    scenario: Scenario,
}

/// Any course of action. An error is a fact: the node did not do what was waited for.
pub fn scenario<F, Fut>(name: impl Into<String>, course: F) -> Spec
where
    F: Fn(Arc<Run>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), String>> + Send + 'static,
{
    Spec { name: name.into(), scenario: Box::new(move |run| course(run).boxed()) }
}

/// One pod, until it has come so far.
pub fn pod(name: impl Into<String>, until: Until, make: impl Fn(&Run, &mut Value) + Send + Sync + 'static) -> Spec {
    let make = Arc::new(make);
    scenario(name, move |run| {
        let (make, until) = (make.clone(), until.clone());
        async move {
            let mut pod = run.pod(&[]);
            make(&run, &mut pod);
            run.create(&pod).await?;
            run.until(&until).await
        }
    })
}

/// How far a pod has come.
#[derive(Clone, Debug)]
pub enum Until {
    /// Succeeded or Failed.
    Ended,
    /// Condition Ready.
    Ready,
    /// Condition ContainersReady.
    ContainersReady,
    /// A container (or init container) waits for this reason.
    Waiting(&'static str),
    /// An init container runs.
    Initializing,
    /// It has ended, or waits in CrashLoopBackOff, after so many restarts.
    Restarted(i64),
    /// So many of its containers have ended.
    Containers(usize),
    /// Its object is gone.
    Gone,
    /// An event of this reason is there.
    Event(&'static str),
}

impl Until {
    fn is_reached(&self, history: &History) -> bool {
        let Some(pod) = history.last() else { return false };
        let status = &pod["status"];
        let mut containers = ["containerStatuses", "initContainerStatuses"]
            .into_iter()
            .flat_map(|list| status[list].as_array().into_iter().flatten());
        match self {
            Self::Ended => ["Succeeded", "Failed"].iter().any(|phase| status["phase"] == *phase),
            Self::Ready => crate::fixture::condition(pod, "Ready") == Some(true),
            Self::ContainersReady => crate::fixture::condition(pod, "ContainersReady") == Some(true),
            Self::Waiting(reason) => containers.any(|container| container["state"]["waiting"]["reason"] == *reason),
            Self::Initializing => {
                let init = status["initContainerStatuses"].as_array().into_iter().flatten();
                init.into_iter().any(|container| container["state"]["running"].is_object())
            }
            Self::Restarted(restarts) => containers.any(|container| {
                let state = &container["state"];
                container["restartCount"].as_i64() >= Some(*restarts)
                    && (state["terminated"].is_object() || state["waiting"]["reason"] == "CrashLoopBackOff")
            }),
            Self::Containers(number) => {
                let ended = |container: &&Value| container["state"]["terminated"].is_object();
                status["containerStatuses"].as_array().into_iter().flatten().filter(ended).count() == *number
            }
            Self::Gone => history.gone.is_some(),
            Self::Event(_) => false,
        }
    }
}

/// A spec on one of the nodes.
pub struct Run {
    pub scene: Arc<Scene>,
    pub recorder: Recorder,
    pub kind: Kind,
    /// Of its pod and of what belongs to that.
    pub name: String,
    spec: String,
    facts: Mutex<Facts>,
}

impl Spec {
    /// Takes the course on one node, with a pod of this name; all that is compared.
    pub async fn run(&self, scene: &Arc<Scene>, recorder: &Recorder, kind: Kind, name: &str) -> Facts {
        let (name, spec, facts) = (name.to_owned(), self.name.clone(), Mutex::default());
        let run = Arc::new(Run { scene: scene.clone(), recorder: recorder.clone(), kind, name, spec, facts });
        let done = tokio::time::timeout(AT_MOST, (self.scenario)(run.clone())).await;
        if let Err(what) = done.unwrap_or_else(|_| Err(format!("an end after {} s", AT_MOST.as_secs()))) {
            run.fact(crate::differences::NOT_DONE, what);
        }
        if !run.recorder.history(kind, &run.name).versions.is_empty() {
            run.observe(&run.name, "").await;
        }
        // Nobody waits for what this one keeps running.
        for pod in recorder.pods(kind, &run.name) {
            let now = DeleteParams::default().grace_period(0);
            let _ = run.pods().delete(&pod, &now).await;
        }
        std::mem::take(&mut *run.facts.lock().unwrap())
    }
}

impl Run {
    pub fn image(&self) -> String {
        self.scene.image(self.kind, "workload:v1")
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.scene.client.clone(), self.kind.name())
    }

    /// A pod of the spec's name on this node, with these steps in one container.
    pub fn pod(&self, steps: &[&str]) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name},
            "spec": {
                "nodeName": self.kind.name(),
                // Both tolerate what only one of the nodes has.
                "tolerations": [{"key": "kubernetes.io/arch", "operator": "Equal", "value": "wasm32-wasi"}],
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "containers": [self.container("main", steps)],
            },
        })
    }

    pub fn container(&self, name: &str, steps: &[&str]) -> Value {
        json!({"name": name, "image": self.image(), "args": steps})
    }

    pub fn fact(&self, name: &str, value: impl Into<String>) {
        let name = name.replace(&self.name, &self.spec);
        self.facts.lock().unwrap().insert(name, self.normalise(&value.into()));
    }

    /// Without what cannot be the same on both nodes.
    pub fn normalise(&self, text: &str) -> String {
        let kind = self.kind.name();
        let text = text.replace(&format!("{}/{kind}/", self.scene.registry.address), "REGISTRY/");
        let text = text.replace(&self.name, &self.spec);
        let mut normalised = String::new();
        for (index, part) in text.split("sha256:").enumerate() {
            if index > 0 {
                normalised.push_str("DIGEST");
            }
            normalised.push_str(if index > 0 {
                part.trim_start_matches(|c: char| c.is_ascii_hexdigit())
            } else {
                part
            });
        }
        // What the others on the node ask for.
        for amount in ["used: ", "capacity: "] {
            let mut parts = normalised.split(amount);
            let mut text = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                text.push_str(amount);
                text.push('N');
                text.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_digit()));
            }
            normalised = text;
        }
        for (own, common) in [
            (format!("_{kind}("), "_NAMESPACE(".to_owned()),
            (format!("{kind}/"), "NAMESPACE/".to_owned()),
            (format!("\"{kind}\""), "\"NAME\"".to_owned()),
            (format!("={kind}\n"), "=NAME\n".to_owned()),
        ] {
            normalised = normalised.replace(&own, &common);
        }
        normalised.trim_end().to_owned()
    }

    pub async fn create(&self, pod: &Value) -> Result<(), String> {
        self.recorder.asked(self.kind, &pod["spec"]);
        let pod: Pod = serde_json::from_value(pod.clone()).map_err(|error| error.to_string())?;
        match self.pods().create(&PostParams::default(), &pod).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the API server refuses the pod: {error}")),
        }
    }

    pub async fn patch(&self, patch: Value) -> Result<(), String> {
        let patched = self.pods().patch(&self.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        patched.map(drop).map_err(|error| error.to_string())
    }

    /// Other requests and limits for its container `main`.
    pub async fn resize(&self, resources: Value) -> Result<(), String> {
        self.patch_resize(json!({"containers": [{"name": "main", "resources": resources}]})).await
    }

    /// The same for the pod as a whole.
    pub async fn resize_pod(&self, resources: Value) -> Result<(), String> {
        self.patch_resize(json!({"resources": resources})).await
    }

    async fn patch_resize(&self, spec: Value) -> Result<(), String> {
        let patch = Patch::Strategic(json!({"spec": spec}));
        let patched = self.pods().patch_subresource("resize", &self.name, &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(|error| error.to_string())
    }

    pub async fn patch_status(&self, patch: Value) -> Result<(), String> {
        let patched = self.pods().patch_status(&self.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        patched.map(drop).map_err(|error| error.to_string())
    }

    pub async fn until(&self, until: &Until) -> Result<(), String> {
        if let Until::Event(reason) = until {
            return self.until_events(reason, 1).await;
        }
        self.until_of(&self.name, until).await
    }

    /// The same of another pod of the spec.
    pub async fn until_of(&self, pod: &str, until: &Until) -> Result<(), String> {
        let waited = self.recorder.wait_for(self.kind, pod, |history| until.is_reached(history)).await;
        waited.map_err(|status| {
            eprintln!("{pod} on {}: not {until:?}: {status}", self.kind.name());
            format!("{until:?}")
        })
    }

    /// Until there are so many events of this reason.
    pub async fn until_events(&self, reason: &str, number: usize) -> Result<(), String> {
        let deadline = Instant::now() + crate::fixture::DEADLINE;
        while Instant::now() < deadline {
            let events = self.recorder.events(self.kind, &self.name).await;
            if events.iter().filter(|event| event.reason.as_deref() == Some(reason)).count() >= number {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!("event {reason}"))
    }

    /// Deletes the pod and waits until it is gone; how long that took is a fact, by the grace period that it had.
    pub async fn delete(&self, grace: Option<u32>) -> Result<(), String> {
        let parameters = DeleteParams { grace_period_seconds: grace, ..DeleteParams::default() };
        let started = Instant::now();
        self.pods().delete(&self.name, &parameters).await.map_err(|error| error.to_string())?;
        self.until(&Until::Gone).await?;
        self.fact("deletion", took(started.elapsed()));
        Ok(())
    }

    /// kubectl in the node's namespace.
    pub async fn kubectl(&self, arguments: &[&str]) -> Output {
        let mut command = self.scene.cluster.kubectl_command(&["-n", self.kind.name()]);
        command.args(arguments).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || crate::fixture::output(&mut command)).await.unwrap()
    }

    /// What kubectl prints, as a fact.
    pub async fn kubectl_fact(&self, arguments: &[&str]) {
        self.kubectl_fact_as(&format!("kubectl {}", arguments.join(" ")), arguments).await;
    }

    /// The same under a name of its own.
    pub async fn kubectl_fact_as(&self, name: &str, arguments: &[&str]) {
        let output = self.kubectl(arguments).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = match output.status.success() {
            true => text(&output.stdout),
            false => format!("{}error: {}", text(&output.stdout), text(&output.stderr)),
        };
        self.fact(name, said);
    }

    /// Makes an object in the node's namespace.
    pub async fn apply(&self, mut object: Value) {
        for template in ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec"] {
            self.recorder.asked(self.kind, object.pointer(template).unwrap_or(&Value::Null));
        }
        object["metadata"]["namespace"] = json!(self.kind.name());
        let run = (self.scene.clone(), object);
        tokio::task::spawn_blocking(move || run.0.cluster.apply(&run.1)).await.unwrap();
    }

    /// All that is compared of a pod, under a prefix.
    pub async fn observe(&self, pod: &str, prefix: &str) {
        self.recorder.settle(self.kind, pod).await;
        let facts = self.recorder.facts(self.kind, pod, |text| self.normalise(text)).await;
        let facts = facts.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value));
        self.facts.lock().unwrap().extend(facts);
    }
}

/// A time in classes that a busy machine does not blur.
pub fn took(duration: Duration) -> String {
    match duration.as_secs() {
        0..=4 => "at once",
        5..=18 => "about 10 s",
        19..=24 => "about 20 s",
        25..=40 => "about 30 s",
        _ => "longer",
    }
    .to_owned()
}
