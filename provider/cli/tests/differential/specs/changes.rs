//! Changes of a pod that is there.

use super::{SEEN, steps};
use crate::observation::History;
use crate::spec::{Run, Spec, Until, scenario};
use serde_json::{Value, json};
use std::time::Instant;

/// Without a limit of CPU if that is empty.
fn resources(cpu: &str, cpu_limit: &str, memory: &str) -> Value {
    let mut resources = json!({"requests": {"cpu": cpu, "memory": "32Mi"}, "limits": {"memory": memory}});
    if !cpu_limit.is_empty() {
        resources["limits"]["cpu"] = json!(cpu_limit);
    }
    resources
}

fn with_resources(run: &Run, resources: Value) -> Value {
    let mut pod = run.pod(&["forever"]);
    pod["spec"]["containers"][0]["resources"] = resources;
    pod
}

/// The container runs with these limits.
fn has(history: &History, cpu: &str, memory: &str) -> bool {
    let container = history.last().map(|pod| pod["status"]["containerStatuses"][0].clone()).unwrap_or_default();
    container["resources"]["limits"] == json!({"cpu": cpu, "memory": memory})
        && container["state"]["running"].is_object()
}

pub fn specs() -> Vec<Spec> {
    vec![
        scenario("image-changed-while-running", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            let image = run.scene.image(run.kind, "workload:v2");
            run.patch(json!({"spec": {"containers": [{"name": "main", "image": image}]}})).await?;
            let restarted = |history: &crate::observation::History| {
                history.last().is_some_and(|pod| {
                    let container = &pod["status"]["containerStatuses"][0];
                    container["restartCount"] == 1 && container["state"]["running"].is_object()
                })
            };
            run.recorder.wait_for(run.kind, &run.name, restarted).await?;
            Ok(())
        }),
        scenario("image-changed-in-back-off", |run| async move {
            let mut pod = run.pod(&[]);
            steps(&mut pod, &[SEEN, "exit:3"]);
            run.create(&pod).await?;
            run.until(&Until::Restarted(1)).await?;
            let started = Instant::now();
            let image = run.scene.image(run.kind, "workload:v2");
            run.patch(json!({"spec": {"containers": [{"name": "main", "image": image}]}})).await?;
            let runs = |history: &crate::observation::History| {
                history.last().is_some_and(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 2)
            };
            run.recorder.wait_for(run.kind, &run.name, runs).await?;
            run.fact("time to the next run", crate::spec::took(started.elapsed()));
            run.until(&Until::Restarted(3)).await
        }),
        scenario("resized-while-running", |run| async move {
            run.create(&with_resources(&run, resources("100m", "500m", "64Mi"))).await?;
            run.until(&Until::Ready).await?;
            run.resize(resources("200m", "600m", "96Mi")).await?;
            run.recorder.wait_for(run.kind, &run.name, |history| has(history, "600m", "96Mi")).await?;
            run.resize(resources("200m", "300m", "80Mi")).await?;
            run.recorder.wait_for(run.kind, &run.name, |history| has(history, "300m", "80Mi")).await?;
            run.until_events("ResizeCompleted", 2).await
        }),
        scenario("resized-as-a-whole", |run| async move {
            let of_pod = |cpu: &str, memory: &str| json!({"requests": {"cpu": "100m"}, "limits": {"cpu": cpu, "memory": memory}});
            let mut pod = run.pod(&["forever"]);
            pod["spec"]["resources"] = of_pod("500m", "64Mi");
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            run.resize_pod(of_pod("600m", "96Mi")).await?;
            let has = |history: &History| {
                let limits = history.last().map(|pod| &pod["status"]["resources"]["limits"]);
                limits == Some(&json!({"cpu": "600m", "memory": "96Mi"}))
            };
            run.recorder.wait_for(run.kind, &run.name, has).await?;
            run.until_events("ResizeCompleted", 1).await
        }),
        scenario("resized-by-another-start", |run| async move {
            let mut pod = with_resources(&run, resources("100m", "500m", "64Mi"));
            pod["spec"]["containers"][0]["resizePolicy"] = json!([
                {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "memory", "restartPolicy": "RestartContainer"},
            ]);
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            run.resize(resources("100m", "600m", "64Mi")).await?;
            run.recorder.wait_for(run.kind, &run.name, |history| has(history, "600m", "64Mi")).await?;
            run.resize(resources("100m", "600m", "96Mi")).await?;
            let restarted = |history: &History| {
                let count = history.last().map(|pod| &pod["status"]["containerStatuses"][0]["restartCount"]);
                has(history, "600m", "96Mi") && count == Some(&json!(1))
            };
            run.recorder.wait_for(run.kind, &run.name, restarted).await?;
            run.until_events("ResizeCompleted", 2).await
        }),
        scenario("labels-changed", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            run.patch(json!({"metadata": {"labels": {"added": "yes"}, "annotations": {"noted": "yes"}}})).await?;
            Ok(())
        }),
        scenario("deadline-set-while-running", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            run.patch(json!({"spec": {"activeDeadlineSeconds": 5}})).await?;
            run.until(&Until::Ended).await
        }),
        scenario("ephemeral-container", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            let image = run.image();
            let arguments = [
                "debug",
                &run.name,
                "--image",
                &image,
                "--container=look",
                "--profile=general",
                "--",
                "/program",
                "print:x",
            ];
            let output = run.kubectl(&arguments).await;
            run.fact("kubectl debug", if output.status.success() { "accepted" } else { "refused" });
            Ok(())
        }),
    ]
}
