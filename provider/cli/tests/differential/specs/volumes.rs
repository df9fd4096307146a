//! Volumes: each kind, missing and optional ones, updates, and how they are mounted.

use super::{SEEN, policy, prints, push, steps, volume};
use crate::spec::{Run, Spec, Until, pod, scenario};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A pod that prints and ends; its log is a fact.
fn logged(name: &str, make: fn(&Run, &mut Value)) -> Spec {
    scenario(name, move |run| async move {
        objects(&run).await;
        let mut pod = run.pod(&[]);
        make(&run, &mut pod);
        run.create(&pod).await?;
        run.until(&Until::Ended).await?;
        run.kubectl_fact(&["logs", &run.name]).await;
        Ok(())
    })
}

async fn objects(run: &Run) {
    let name = &run.name;
    run.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"a": "one", "b": "two"}, "binaryData": {"c": "/wA="}}))
        .await;
    run.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"s": "hidden"}}))
        .await;
}

fn at_v() -> Value {
    json!({"mountPath": "/v"})
}

pub fn specs() -> Vec<Spec> {
    let mut specs = vec![
        logged("volume-empty-dir-plain", |_, pod| {
            prints(pod, &["list:/v", "write:/v/x=1", "read:/v/x", "list:/v"]);
            volume(pod, "v", json!({"emptyDir": {}}), at_v());
        }),
        logged("volume-empty-dir-in-memory", |_, pod| {
            prints(pod, &["write:/v/x=1", "read:/v/x"]);
            volume(pod, "v", json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}), at_v());
        }),
        logged("volume-shared-by-containers", |run, pod| {
            prints(pod, &["sleep:1500", "read:/v/x"]);
            volume(pod, "v", json!({"emptyDir": {}}), at_v());
            let mut other = run.container("init", &["write:/v/x=of-init"]);
            other["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
            pod["spec"]["initContainers"] = json!([other]);
        }),
        logged("volume-config-map-whole", |run, pod| {
            prints(pod, &["list:/v", "read:/v/a", "read:/v/b", "read:/v/c", "write:/v/a=changed", "mode:/v/a"]);
            volume(pod, "v", json!({"configMap": {"name": run.name, "defaultMode": 0o440}}), at_v());
        }),
        logged("volume-config-map-items", |run, pod| {
            prints(pod, &["list:/v", "list:/v/sub", "read:/v/sub/a"]);
            let items = json!([{"key": "a", "path": "sub/a", "mode": 0o400}]);
            volume(pod, "v", json!({"configMap": {"name": run.name, "items": items}}), at_v());
        }),
        logged("volume-config-map-optional", |run, pod| {
            prints(pod, &["list:/v", "list:/w"]);
            volume(pod, "v", json!({"configMap": {"name": "not-there", "optional": true}}), at_v());
            let items = json!([{"key": "no", "path": "no"}, {"key": "a", "path": "a"}]);
            let source = json!({"configMap": {"name": run.name, "items": items, "optional": true}});
            volume(pod, "w", source, json!({"mountPath": "/w"}));
        }),
        logged("volume-secret-whole", |run, pod| {
            prints(pod, &["list:/v", "read:/v/s"]);
            volume(pod, "v", json!({"secret": {"secretName": run.name}}), at_v());
        }),
        logged("volume-downward-api", |_, pod| {
            prints(pod, &["read:/v/labels", "read:/v/annotations", "read:/v/name", "read:/v/memory"]);
            pod["metadata"]["labels"] = json!({"b": "2", "a": "1"});
            pod["metadata"]["annotations"] = json!({"n": "quoted \" and\nlines"});
            let field = |path: &str, of: &str| json!({"path": path, "fieldRef": {"fieldPath": of}});
            let memory = json!({"containerName": "main", "resource": "limits.memory"});
            pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi"}});
            let items = json!([
                field("labels", "metadata.labels"), field("annotations", "metadata.annotations"),
                field("name", "metadata.name"), {"path": "memory", "resourceFieldRef": memory},
            ]);
            volume(pod, "v", json!({"downwardAPI": {"items": items}}), at_v());
        }),
        logged("volume-projected", |run, pod| {
            prints(pod, &["list:/v", "list:/v/m", "read:/v/m/a", "read:/v/s", "read:/v/name"]);
            let items = json!([{"key": "a", "path": "m/a"}]);
            let name = json!([{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]);
            let sources = json!([
                {"configMap": {"name": run.name, "items": items}}, {"secret": {"name": run.name}},
                {"downwardAPI": {"items": name}}, {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            ]);
            volume(pod, "v", json!({"projected": {"sources": sources}}), at_v());
        }),
        logged("volume-host-path-directory", |run, pod| {
            prints(pod, &["write:/v/x=1", "read:/v/x", "list:/v"]);
            let path = run.scene.files.path().join(run.kind.name());
            volume(pod, "v", json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}}), at_v());
        }),
        logged("volume-host-path-file", |run, pod| {
            prints(pod, &["read:/v/file"]);
            let path = run.scene.files.path().join("file");
            std::fs::write(&path, "of the host").unwrap();
            volume(pod, "v", json!({"hostPath": {"path": path, "type": "File"}}), json!({"mountPath": "/v/file"}));
        }),
        logged("volume-sub-path-of-empty-dir", |_, pod| {
            prints(pod, &["write:/v/x=1", "list:/all", "list:/all/sub", "list:/all/expr-main"]);
            volume(pod, "v", json!({"emptyDir": {}}), json!({"mountPath": "/v", "subPath": "sub/deep"}));
            let container = &mut pod["spec"]["containers"][0];
            container["env"] = json!([{"name": "N", "value": "main"}]);
            push(container, "volumeMounts", json!({"name": "v", "mountPath": "/w", "subPathExpr": "expr-$(N)"}));
            push(container, "volumeMounts", json!({"name": "v", "mountPath": "/all"}));
        }),
        logged("volume-sub-path-of-config-map", |run, pod| {
            prints(pod, &["read:/etc/app/a"]);
            let mount = json!({"mountPath": "/etc/app/a", "subPath": "a"});
            volume(pod, "v", json!({"configMap": {"name": run.name}}), mount);
        }),
        logged("volume-read-only", |_, pod| {
            prints(pod, &["write:/v/x=1", "list:/v"]);
            volume(pod, "v", json!({"emptyDir": {}}), json!({"mountPath": "/v", "readOnly": true}));
        }),
        logged("volume-relative-path", |_, pod| {
            prints(pod, &["write:/data/x=1", "read:/data/x"]);
            volume(pod, "v", json!({"emptyDir": {}}), json!({"mountPath": "data"}));
        }),
        logged("volume-nested-mounts", |_, pod| {
            prints(pod, &["write:/v/x=1", "write:/v/in/y=2", "list:/v/in", "list:/w"]);
            volume(pod, "v", json!({"emptyDir": {}}), at_v());
            volume(pod, "w", json!({"emptyDir": {}}), json!({"mountPath": "/v/in"}));
            push(&mut pod["spec"]["containers"][0], "volumeMounts", json!({"name": "w", "mountPath": "/w"}));
        }),
        pod("volume-host-path-missing", Until::Event("FailedMount"), |run, pod| {
            let path = run.scene.files.path().join("missing");
            volume(pod, "v", json!({"hostPath": {"path": path, "type": "Directory"}}), at_v());
        }),
        pod("volume-empty-dir-over-limit", Until::Ended, |_, pod| {
            steps(pod, &["write:/v/x=0123456789", "sleep:1000", "write:/v/y=0123456789", "forever"]);
            volume(pod, "v", json!({"emptyDir": {"sizeLimit": "1"}}), at_v());
        }),
    ];
    for (kind, source) in [("config-map", "configMap"), ("secret", "secret")] {
        specs.push(comes_later(format!("volume-{kind}-missing"), source));
    }
    specs.push(scenario("volume-config-map-key-missing", |run| async move {
        objects(&run).await;
        let mut pod = run.pod(&["forever"]);
        let items = json!([{"key": "no", "path": "no"}]);
        volume(&mut pod, "v", json!({"configMap": {"name": run.name, "items": items}}), at_v());
        run.create(&pod).await?;
        run.until(&Until::Event("FailedMount")).await
    }));
    specs.push(scenario("volume-is-brought-up-to-date", |run| async move {
        objects(&run).await;
        let mut pod = run.pod(&["follow:/v/a"]);
        policy(&mut pod, "Never");
        volume(&mut pod, "v", json!({"configMap": {"name": run.name}}), at_v());
        run.create(&pod).await?;
        run.until(&Until::Ready).await?;
        let data = json!({"a": "another"});
        run.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": run.name}, "data": data})).await;
        // A kubelet does it when it looks at the pod again, in a minute or so; a change of the pod makes it look.
        let deadline = Instant::now() + Duration::from_secs(100);
        let mut log = String::new();
        while Instant::now() < deadline && !log.contains("another") {
            tokio::time::sleep(Duration::from_secs(1)).await;
            log = String::from_utf8_lossy(&run.kubectl(&["logs", &run.name]).await.stdout).into_owned();
        }
        run.fact("what the container saw", log);
        Ok(())
    }));
    specs.push(scenario("volume-of-labels-is-brought-up-to-date", |run| async move {
        let mut pod = run.pod(&["follow:/v/labels"]);
        pod["metadata"]["labels"] = json!({"app": "first"});
        let labels = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
        volume(&mut pod, "v", json!({"downwardAPI": {"items": labels}}), at_v());
        run.create(&pod).await?;
        run.until(&Until::Ready).await?;
        run.patch(json!({"metadata": {"labels": {"app": "second"}}})).await?;
        let deadline = Instant::now() + Duration::from_secs(100);
        let mut log = String::new();
        while Instant::now() < deadline && !log.contains("second") {
            tokio::time::sleep(Duration::from_secs(1)).await;
            log = String::from_utf8_lossy(&run.kubectl(&["logs", &run.name]).await.stdout).into_owned();
        }
        run.fact("what the container saw", log);
        Ok(())
    }));
    specs
}

/// The pod waits for what its volume needs, and runs when it is there.
fn comes_later(name: String, source: &'static str) -> Spec {
    scenario(name, move |run| async move {
        let mut pod = run.pod(&["read:/v/key", SEEN, "forever"]);
        let field = if source == "secret" { "secretName" } else { "name" };
        volume(&mut pod, "v", json!({source: {field: run.name}}), at_v());
        run.create(&pod).await?;
        run.until(&Until::Event("FailedMount")).await?;
        run.fact("phase while it waits", phase(&run));
        let (kind, data) = if source == "secret" { ("Secret", "stringData") } else { ("ConfigMap", "data") };
        run.apply(json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": run.name}, data: {"key": "there"}}))
            .await;
        run.until(&Until::Ready).await?;
        run.kubectl_fact(&["logs", &run.name]).await;
        Ok(())
    })
}

fn phase(run: &Run) -> String {
    let history = run.recorder.history(run.kind, &run.name);
    history.last().and_then(|pod| pod["status"]["phase"].as_str()).unwrap_or_default().to_owned()
}
