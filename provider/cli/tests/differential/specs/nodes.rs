//! What concerns a node and all that is on it: its object, outages, restarts, drains, taints, preemption.

use super::workloads::template;
use super::{SEEN, steps};
use crate::fixture::condition;
use crate::side::Kind;
use crate::spec::{Run, Spec, Until, scenario};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than the controller waits before it calls a node not ready.
const OUTAGE: Duration = Duration::from_secs(65);

/// A kubelet tells what is its own with its next look, which is in a few seconds or in ten.
fn soon(time: Duration) -> &'static str {
    if time < Duration::from_secs(20) { "within 20 s" } else { "later" }
}

pub fn specs() -> Vec<Spec> {
    vec![
        scenario("node-object", |run| async move {
            let node = node(&run).await;
            let keys = |value: &Value| {
                let names: Vec<_> = value.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
                names.join(", ")
            };
            for field in ["capacity", "allocatable", "nodeInfo"] {
                run.fact(&format!("keys of {field}"), keys(&node["status"][field]));
            }
            run.fact("fields of the status", keys(&node["status"]));
            run.fact("labels", keys(&node["metadata"]["labels"]));
            run.fact("pods", node["status"]["capacity"]["pods"].to_string());
            for condition in node["status"]["conditions"].as_array().into_iter().flatten() {
                let text = |field: &str| condition[field].as_str().unwrap_or_default();
                run.fact(&format!("condition {}", text("type")), format!("{} {}", text("status"), text("reason")));
            }
            let types = node["status"]["addresses"].as_array().into_iter().flatten();
            let types: Vec<_> = types.filter_map(|address| address["type"].as_str()).collect();
            run.fact("addresses", types.join(", "));
            Ok(())
        }),
        scenario("node-away", |run| async move {
            let pods = many(&run).await?;
            stop(&run, Signal::STOP).await;
            tokio::time::sleep(OUTAGE).await;
            let away = condition(&node(&run).await, "Ready") == Some(true);
            run.fact("Ready while it is away", away.to_string());
            stop(&run, Signal::CONT).await;
            let back = Instant::now();
            wait_until_ready(&run).await?;
            run.fact("time until the Node is Ready", soon(back.elapsed()));
            let ready = format!("{}-runs", run.name);
            let waited = run.until_of(&ready, &Until::Ready).await;
            run.fact("time until a pod is Ready", soon(back.elapsed()));
            waited?;
            observe(&run, &pods).await;
            Ok(())
        }),
        scenario("node-program-killed", |run| async move {
            let pods = many(&run).await?;
            match run.kind {
                Kind::Linux => {
                    let before = run.scene.cluster.pid("kubelet");
                    kill_process(before, Signal::KILL).unwrap();
                    let deadline = Instant::now() + crate::fixture::DEADLINE;
                    while run.scene.cluster.pid("kubelet") == before {
                        if Instant::now() > deadline {
                            return Err("another kubelet".to_owned());
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                Kind::Wasm => {
                    let mut node = run.scene.node.lock().await;
                    node.kill();
                    node.run(&run.scene.cluster.bootstrap());
                }
            }
            // It has looked at its pods when a new one runs.
            let mut witness = run.pod(&["forever"]);
            let name = format!("{}-witness", run.name);
            witness["metadata"]["name"] = json!(name);
            run.create(&witness).await?;
            run.until_of(&name, &Until::Ready).await?;
            run.until_of(&format!("{}-runs", run.name), &Until::Ready).await?;
            observe(&run, &pods).await;
            Ok(())
        }),
        scenario("pod-deleted-while-node-away", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            stop(&run, Signal::STOP).await;
            let deleted = run.pods().delete(&run.name, &Default::default()).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            stop(&run, Signal::CONT).await;
            deleted.map_err(|error| error.to_string())?;
            run.until(&Until::Gone).await
        }),
        scenario("node-tainted", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            let mut tolerant = run.pod(&["forever"]);
            let name = format!("{}-tolerant", run.name);
            tolerant["metadata"]["name"] = json!(name);
            tolerant["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
            run.create(&tolerant).await?;
            run.until(&Until::Ready).await?;
            run.until_of(&name, &Until::Ready).await?;
            run.kubectl(&["taint", "node", run.kind.name(), "test=x:NoExecute"]).await;
            let gone = run.until(&Until::Gone).await;
            let mut late = run.pod(&["forever"]);
            let late_name = format!("{}-late", run.name);
            late["metadata"]["name"] = json!(late_name);
            run.create(&late).await?;
            let waited = run.recorder.wait_for(run.kind, &late_name, |history| {
                let failed = history.last().is_some_and(|pod| pod["status"]["phase"] == "Failed");
                failed || history.gone.is_some()
            });
            let waited = waited.await;
            run.kubectl(&["taint", "node", run.kind.name(), "test-"]).await;
            run.observe(&name, "tolerant: ").await;
            gone?;
            waited.map(drop)
        }),
        scenario("pod-preempted", |run| async move {
            for (name, value) in [("low", 1), ("high", 1000)] {
                let name = format!("{name}-{}", run.kind.name());
                run.apply(
                    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                    "value": value}),
                )
                .await;
            }
            // More than half of the node each.
            let allocatable = node(&run).await["status"]["allocatable"]["cpu"].as_str().unwrap_or("1").to_owned();
            let milli = match allocatable.strip_suffix('m') {
                Some(milli) => milli.parse().unwrap_or(1000),
                None => allocatable.parse::<u64>().unwrap_or(1) * 1000,
            };
            for (name, class) in [(run.name.clone(), "low"), (format!("{}-high", run.name), "high")] {
                let mut pod = template(&run, &["forever"]);
                pod["apiVersion"] = json!("v1");
                pod["kind"] = json!("Pod");
                pod["metadata"]["name"] = json!(name);
                pod["spec"]["priorityClassName"] = json!(format!("{class}-{}", run.kind.name()));
                pod["spec"]["containers"][0]["resources"] =
                    json!({"requests": {"cpu": format!("{}m", milli * 6 / 10)}});
                run.create(&pod).await?;
                run.until_of(&name, &Until::Ready).await?;
            }
            run.until(&Until::Gone).await
        }),
        scenario("node-drained", |run| async move {
            let mut pod = run.pod(&["forever"]);
            pod["metadata"]["labels"] = json!({"app": run.name});
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            // One that lets it go.
            let budget = json!({"minAvailable": 0, "selector": {"matchLabels": {"app": run.name}}});
            run.apply(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": run.name},
                "spec": budget}))
                .await;
            let output = run
                .kubectl(&[
                    "drain",
                    run.kind.name(),
                    "--force",
                    "--ignore-daemonsets",
                    "--delete-emptydir-data",
                    "--timeout=60s",
                ])
                .await;
            run.fact("drain", if output.status.success() { "succeeds" } else { "fails" });
            run.until(&Until::Gone).await?;
            run.kubectl(&["uncordon", run.kind.name()]).await;
            Ok(())
        }),
    ]
}

/// Pods in each state that a node can come back to.
async fn many(run: &Arc<Run>) -> Result<Vec<String>, String> {
    let states: [(&str, &[&str], &str, Until); 6] = [
        ("runs", &["forever"], "Always", Until::Ready),
        ("crashes", &[SEEN, "exit:3"], "Always", Until::Restarted(1)),
        ("ended-well", &[SEEN, "exit:0"], "Never", Until::Ended),
        ("ended-badly", &[SEEN, "exit:3"], "Never", Until::Ended),
        ("no-image", &["forever"], "Always", Until::Waiting("ImagePullBackOff")),
        ("in-init", &["forever"], "Always", Until::Initializing),
    ];
    let mut pods = Vec::new();
    for (state, what, policy, _) in &states {
        let mut pod = run.pod(&[]);
        let name = format!("{}-{state}", run.name);
        pod["metadata"]["name"] = json!(name);
        steps(&mut pod, what);
        super::policy(&mut pod, policy);
        if *state == "no-image" {
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, "missing:v1"));
        }
        if *state == "in-init" {
            pod["spec"]["initContainers"] = json!([run.container("first", &["forever"])]);
        }
        run.create(&pod).await?;
        pods.push(name);
    }
    for (name, (.., until)) in pods.iter().zip(&states) {
        run.until_of(name, until).await?;
    }
    Ok(pods)
}

async fn observe(run: &Arc<Run>, pods: &[String]) {
    for pod in pods {
        let state = pod.strip_prefix(&format!("{}-", run.name)).unwrap_or(pod);
        // These go on all the time.
        if state == "crashes" {
            continue;
        }
        run.observe(pod, &format!("{state}: ")).await;
    }
}

async fn node(run: &Arc<Run>) -> Value {
    let output = run.kubectl(&["get", "node", run.kind.name(), "-o", "json"]).await;
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

async fn wait_until_ready(run: &Arc<Run>) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(90);
    while condition(&node(run).await, "Ready") != Some(true) {
        if Instant::now() > deadline {
            return Err("the Node is not Ready".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Stops the node's program, or lets it go on.
async fn stop(run: &Arc<Run>, signal: Signal) {
    let pid = match run.kind {
        Kind::Linux => run.scene.cluster.pid("kubelet"),
        Kind::Wasm => Pid::from_raw(run.scene.node.lock().await.pid().cast_signed()).unwrap(),
    };
    kill_process(pid, signal).unwrap();
}
