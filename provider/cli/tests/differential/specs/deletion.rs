//! How a pod comes to its end: grace periods, deadlines, finalizers, termination messages.

use super::{SEEN, ends, steps};
use crate::side::Kind;
use crate::spec::{Run, Spec, Until, pod, scenario};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::sync::Arc;

/// A guest is asked to end by the end of its input, which has to be open; a process by a signal.
fn with_input(run: &Run, pod: &mut Value) {
    if run.kind == Kind::Wasm {
        pod["spec"]["containers"][0]["stdin"] = json!(true);
    }
}

pub fn specs() -> Vec<Spec> {
    let deleted = |name: &'static str, ready: Until, grace: Option<u32>, make: fn(&Run, &mut Value)| {
        scenario(name, move |run| {
            let ready = ready.clone();
            async move {
                let mut pod = run.pod(&[]);
                make(&run, &mut pod);
                run.create(&pod).await?;
                run.until(&ready).await?;
                run.delete(grace).await
            }
        })
    };
    vec![
        deleted("deleted-ends-when-asked", Until::Ready, None, |run, pod| {
            steps(pod, &["wait", "print:asked", "exit:0"]);
            pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
            with_input(run, pod);
        }),
        deleted("deleted-does-not-end", Until::Ready, None, |_, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
        }),
        deleted("deleted-spins", Until::Ready, None, |_, pod| {
            steps(pod, &["spin"]);
            pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "100m"}});
            pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
        }),
        deleted("deleted-with-shorter-grace", Until::Ready, Some(1), |_, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["terminationGracePeriodSeconds"] = json!(60);
        }),
        deleted("deleted-in-back-off", Until::Restarted(1), None, |_, pod| steps(pod, &[SEEN, "exit:3"])),
        deleted("deleted-in-init", Until::Initializing, None, |run, pod| {
            pod["spec"]["initContainers"] = json!([run.container("first", &["forever"])]);
        }),
        deleted("deleted-waiting-for-config", Until::Waiting("CreateContainerConfigError"), None, |_, pod| {
            pod["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "not-there"}}]);
        }),
        deleted("deleted-waiting-for-volume", Until::Event("FailedMount"), None, |_, pod| {
            super::volume(pod, "v", json!({"secret": {"secretName": "not-there"}}), json!({"mountPath": "/v"}));
        }),
        deleted("deleted-waiting-for-image", Until::Waiting("ImagePullBackOff"), None, |run, pod| {
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, "missing:v1"));
        }),
        deleted("deleted-after-its-end", Until::Ended, None, |_, pod| ends(pod, "exit:0")),
        deleted("deleted-by-force", Until::Ready, Some(0), |_, pod| steps(pod, &["forever"])),
        scenario("deleted-with-finalizer", |run| async move {
            let mut pod = run.pod(&["wait", "exit:0"]);
            with_input(&run, &mut pod);
            pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
            pod["metadata"]["finalizers"] = json!(["test/keep"]);
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            run.pods().delete(&run.name, &DeleteParams::default()).await.map_err(|error| error.to_string())?;
            let waited = run.until(&Until::Ended).await;
            run.observe(&run.name, "while the finalizer keeps it: ").await;
            release(&run).await?;
            waited?;
            run.until(&Until::Gone).await
        }),
        scenario("failed-with-finalizer", |run| async move {
            let mut pod = run.pod(&["forever"]);
            pod["metadata"]["finalizers"] = json!(["test/keep"]);
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            run.pods().delete(&run.name, &DeleteParams::default()).await.map_err(|error| error.to_string())?;
            let waited = run.until(&Until::Ended).await;
            run.observe(&run.name, "while the finalizer keeps it: ").await;
            release(&run).await?;
            waited?;
            run.until(&Until::Gone).await
        }),
        pod("active-too-long-running", Until::Ended, |_, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["activeDeadlineSeconds"] = json!(4);
        }),
        pod("active-too-long-in-init", Until::Ended, |run, pod| {
            pod["spec"]["initContainers"] = json!([run.container("first", &["forever"])]);
            pod["spec"]["activeDeadlineSeconds"] = json!(4);
        }),
        pod("active-too-long-waiting", Until::Ended, |_, pod| {
            pod["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "not-there"}}]);
            pod["spec"]["activeDeadlineSeconds"] = json!(4);
        }),
        pod("termination-message-of-a-file", Until::Ended, |_, pod| {
            super::steps(pod, &["print:of the log", "write:/dev/termination-log=of the file", SEEN, "exit:3"]);
            super::policy(pod, "Never");
        }),
        pod("termination-message-path", Until::Ended, |_, pod| {
            super::steps(pod, &["write:/message/here=of the file", SEEN, "exit:0"]);
            super::policy(pod, "Never");
            pod["spec"]["containers"][0]["terminationMessagePath"] = json!("/message/here");
        }),
        pod("termination-message-of-the-log", Until::Ended, |_, pod| {
            super::steps(pod, &["lines:100", "print:the last words", SEEN, "exit:3"]);
            super::policy(pod, "Never");
            pod["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
        }),
        pod("termination-message-not-of-the-log", Until::Ended, |_, pod| {
            super::steps(pod, &["print:nothing of this", SEEN, "exit:0"]);
            super::policy(pod, "Never");
            pod["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
        }),
        scenario("evicted-by-the-api", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            run.pods().evict(&run.name, &Default::default()).await.map_err(|error| error.to_string())?;
            run.until(&Until::Gone).await
        }),
    ]
}

async fn release(run: &Arc<Run>) -> Result<(), String> {
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let patched = run.pods().patch(&run.name, &PatchParams::default(), &patch).await;
    patched.map(drop).map_err(|error| error.to_string())
}
