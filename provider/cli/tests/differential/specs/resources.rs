//! Requests and limits in each notation, and what does not fit.

use super::ends;
use crate::spec::{Spec, Until, pod, scenario};
use serde_json::{Value, json};

pub fn specs() -> Vec<Spec> {
    let of_container = |name: &str, resources: Value| {
        pod(name, Until::Ended, move |_, pod| {
            ends(pod, "exit:0");
            pod["spec"]["containers"][0]["resources"] = resources.clone();
        })
    };
    let of_pod = |name: &str, resources: Value, container: Value| {
        pod(name, Until::Ended, move |_, pod| {
            ends(pod, "exit:0");
            pod["spec"]["resources"] = resources.clone();
            pod["spec"]["containers"][0]["resources"] = container.clone();
        })
    };
    let both = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    vec![
        of_pod(
            "resources-of-pod-guaranteed",
            json!({"requests": both("50m", "64Mi"), "limits": both("50m", "64Mi")}),
            json!({"requests": {"cpu": "10m"}}),
        ),
        of_pod("resources-of-pod-burstable", json!({"requests": both("50m", "64Mi")}), json!({})),
        of_pod("resources-of-pod-limits-only", json!({"limits": both("50m", "64Mi")}), json!({})),
        of_pod("resources-of-pod-over-capacity", json!({"requests": both("1000", "64Mi")}), json!({})),
        of_container("resources-none", json!({})),
        of_container("resources-zero-cpu-request", json!({"requests": {"cpu": "0"}})),
        of_container("resources-zero-of-both", json!({"requests": {"cpu": "0", "memory": "0"}})),
        of_container("resources-zero-limits", json!({"limits": {"cpu": "0", "memory": "0"}})),
        of_container(
            "resources-odd-units",
            json!({"requests": {"cpu": "1e-2", "memory": "1e6"}, "limits": {"memory": "0.5Gi"}}),
        ),
        of_container(
            "resources-guaranteed-in-two-notations",
            json!({"requests": {"cpu": "50m", "memory": "65536Ki"}, "limits": {"cpu": "0.05", "memory": "64Mi"}}),
        ),
        of_container("resources-limits-only", json!({"limits": {"cpu": "50m", "memory": "64Mi"}})),
        of_container("resources-burstable", json!({"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}})),
        of_container("resources-ephemeral-storage", json!({"limits": {"ephemeral-storage": "1Gi"}})),
        of_container("resources-cpu-over-capacity", json!({"requests": {"cpu": "1000"}})),
        of_container("resources-cpu-beyond-measure", json!({"requests": {"cpu": "1e30"}})),
        of_container("resources-memory-over-capacity", json!({"requests": {"memory": "100Ti"}})),
        of_container(
            "resources-extended-unknown",
            json!({"requests": {"example.com/thing": "1"}, "limits": {"example.com/thing": "1"}}),
        ),
        pod("resources-of-init-over-capacity", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            let mut init = run.container("first", &["exit:0"]);
            init["resources"] = json!({"requests": {"cpu": "1000"}});
            pod["spec"]["initContainers"] = json!([init]);
        }),
        scenario("resources-overhead-over-capacity", |run| async move {
            let class = format!("heavy-{}", run.kind.name());
            // The handler is one that a Linux node has; here there is one runtime, whatever the class says.
            run.apply(json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class},
                "handler": "runc", "overhead": {"podFixed": {"cpu": "1000"}}}))
                .await;
            let mut pod = run.pod(&["exit:0"]);
            pod["spec"]["runtimeClassName"] = json!(class);
            pod["spec"]["overhead"] = json!({"cpu": "1000"});
            run.create(&pod).await?;
            run.until(&Until::Ended).await
        }),
        pod("affinity-matches", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            pod["spec"]["affinity"] = affinity("kubernetes.io/hostname", run.kind.name());
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": run.kind.name()});
        }),
        pod("affinity-does-not-match", Until::Ended, |_, pod| {
            pod["spec"]["affinity"] = affinity("disk", "ssd");
        }),
        pod("selector-does-not-match", Until::Ended, |_, pod| {
            pod["spec"]["nodeSelector"] = json!({"disk": "ssd"});
        }),
        pod("resources-of-the-pod", Until::Ended, |_, pod| {
            ends(pod, "exit:0");
            pod["spec"]["resources"] = json!({"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}});
        }),
        pod("resources-guaranteed-main-only", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "60m", "memory": "64Mi"}});
            let mut init = run.container("first", &["sleep:1500"]);
            init["resources"] = json!({"requests": {"cpu": "50m"}});
            pod["spec"]["initContainers"] = json!([init]);
        }),
    ]
}

fn affinity(label: &str, value: &str) -> Value {
    let expression = json!({"key": label, "operator": "In", "values": [value]});
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}})
}
