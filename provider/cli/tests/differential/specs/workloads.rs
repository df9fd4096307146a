//! What makes pods, and what asks for their end.

use super::SEEN;
use crate::spec::{Run, Spec, Until, scenario};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A template whose pods the scheduler places on this node.
pub fn template(run: &Run, steps: &[&str]) -> Value {
    let mut pod = run.pod(steps);
    let spec = &mut pod["spec"];
    spec.as_object_mut().unwrap().remove("nodeName");
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": run.kind.name()});
    json!({"metadata": {"labels": {"app": run.name}}, "spec": spec})
}

fn workload(run: &Run, kind: &str, spec: Value, steps: &[&str]) -> Value {
    let mut spec = spec;
    spec["template"] = template(run, steps);
    if kind == "Job" {
        spec["template"]["spec"]["restartPolicy"] = json!("Never");
    } else {
        spec["selector"] = json!({"matchLabels": {"app": run.name}});
    }
    let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": run.name}, "spec": spec})
}

async fn get(run: &Run, kind: &str) -> Value {
    let output = run.kubectl(&["get", kind, &run.name, "-o", "json"]).await;
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Waits until the object satisfies `condition`.
async fn wait(run: &Run, kind: &str, condition: impl Fn(&Value) -> bool) -> Result<Value, String> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let object = get(run, kind).await;
        if condition(&object) {
            return Ok(object);
        }
        if Instant::now() > deadline {
            return Err(format!("{kind}: {}", object["status"]));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn has(object: &Value, condition: &str) -> bool {
    crate::fixture::condition(object, condition) == Some(true)
}

/// Which conditions a workload has.
fn observe_conditions(run: &Arc<Run>, object: &Value) {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in conditions {
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        run.fact(
            &format!("{} {}", object["kind"].as_str().unwrap(), text("type")),
            format!("{} {}", text("status"), text("reason")),
        );
    }
}

/// Which conditions a workload has, and how its pods ended.
async fn observe(run: &Arc<Run>, object: &Value) {
    observe_conditions(run, object);
    for field in ["succeeded", "failed", "readyReplicas", "numberReady"] {
        if !object["status"][field].is_null() {
            run.fact(field, object["status"][field].to_string());
        }
    }
    let selector = format!("app={}", run.name);
    let output = run.kubectl(&["get", "pods", "-l", &selector, "-o", "json"]).await;
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let mut pods: Vec<_> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| {
            let status = &pod["status"];
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let conditions: Vec<_> = conditions
                .map(|condition| {
                    format!("{}={}", condition["type"].as_str().unwrap(), condition["status"].as_str().unwrap())
                })
                .filter(|text| text.starts_with("DisruptionTarget") || text.starts_with("Ready="))
                .collect();
            let code = &status["containerStatuses"][0]["state"]["terminated"]["exitCode"];
            format!("{} {code} {}", status["phase"].as_str().unwrap_or_default(), conditions.join(" "))
        })
        .collect();
    pods.sort();
    run.fact("pods", pods.join(", "));
}

fn job(name: &'static str, spec: Value, steps: &'static [&'static str]) -> Spec {
    scenario(name, move |run| {
        let spec = spec.clone();
        async move {
            run.apply(workload(&run, "Job", spec, steps)).await;
            let job = wait(&run, "job", |job| has(job, "Complete") || has(job, "Failed")).await?;
            if name != "job-deadline" {
                observe(&run, &job).await;
            } else {
                // Its pods are deleted, and gone sooner or later.
                observe_conditions(&run, &job);
            }
            delete(&run, "job").await;
            Ok(())
        }
    })
}

async fn delete(run: &Run, kind: &str) {
    run.kubectl(&["delete", kind, &run.name, "--wait=false", "--grace-period=1"]).await;
}

pub fn specs() -> Vec<Spec> {
    let fail_at = |code: i64| {
        json!({"backoffLimit": 3, "podFailurePolicy": {"rules": [
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [code]}}]}})
    };
    vec![
        job("job-completes", json!({"completions": 2, "parallelism": 2}), &[SEEN, "exit:0"]),
        job("job-fails", json!({"backoffLimit": 1}), &[SEEN, "exit:3"]),
        job("job-failure-policy-42", fail_at(42), &[SEEN, "exit:42"]),
        job("job-failure-policy-255", fail_at(255), &[SEEN, "exit:255"]),
        job("job-failure-policy-other-code", fail_at(42), &["exit:0"]),
        job("job-deadline", json!({"activeDeadlineSeconds": 5}), &["forever"]),
        scenario("deployment-rolls", |run| async move {
            run.apply(workload(&run, "Deployment", json!({"replicas": 2}), &["forever"])).await;
            wait(&run, "deployment", |it| it["status"]["readyReplicas"] == 2).await?;
            let image = format!("main={}", run.scene.image(run.kind, "workload:v2"));
            run.kubectl(&["set", "image", &format!("deployment/{}", run.name), &image]).await;
            let rolled = |it: &Value| {
                let status = &it["status"];
                status["observedGeneration"] == it["metadata"]["generation"]
                    && status["updatedReplicas"] == 2
                    && status["readyReplicas"] == 2
                    && status["replicas"] == 2
            };
            wait(&run, "deployment", rolled).await?;
            let gone = Instant::now() + Duration::from_secs(30);
            while run.recorder.pods(run.kind, &run.name).len() > 2 && Instant::now() < gone {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            observe(&run, &get(&run, "deployment").await).await;
            delete(&run, "deployment").await;
            Ok(())
        }),
        scenario("deployment-bad-image", |run| async move {
            run.apply(workload(&run, "Deployment", json!({"replicas": 2, "progressDeadlineSeconds": 5}), &["forever"]))
                .await;
            wait(&run, "deployment", |it| it["status"]["readyReplicas"] == 2).await?;
            let image = format!("main={}", run.scene.image(run.kind, "missing:v1"));
            run.kubectl(&["set", "image", &format!("deployment/{}", run.name), &image]).await;
            let stuck = |it: &Value| {
                let conditions = it["status"]["conditions"].as_array().into_iter().flatten();
                conditions.into_iter().any(|condition| condition["reason"] == "ProgressDeadlineExceeded")
            };
            let deployment = wait(&run, "deployment", stuck).await?;
            observe(&run, &deployment).await;
            delete(&run, "deployment").await;
            Ok(())
        }),
        scenario("daemon-set", |run| async move {
            run.apply(workload(&run, "DaemonSet", json!({}), &["forever"])).await;
            let set = wait(&run, "daemonset", |it| it["status"]["numberReady"] == 1).await?;
            observe(&run, &set).await;
            delete(&run, "daemonset").await;
            Ok(())
        }),
        scenario("disruption-budget-forbids-eviction", |run| async move {
            let mut pod = run.pod(&["forever"]);
            pod["metadata"]["labels"] = json!({"app": run.name});
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            let selector = json!({"matchLabels": {"app": run.name}});
            run.apply(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": run.name},
                "spec": {"minAvailable": 1, "selector": selector}}))
                .await;
            wait(&run, "poddisruptionbudget", |it| it["status"]["expectedPods"] == 1).await?;
            let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": run.name}});
            let file = run.scene.files.path().join(format!("eviction-{}.json", run.kind.name()));
            std::fs::write(&file, eviction.to_string()).unwrap();
            let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", run.kind.name(), run.name);
            run.kubectl_fact_as("eviction", &["create", "--raw", &path, "-f", file.to_str().unwrap()]).await;
            delete(&run, "poddisruptionbudget").await;
            Ok(())
        }),
    ]
}
