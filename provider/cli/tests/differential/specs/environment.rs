//! Variables and arguments.

use super::{SEEN, prints, push, steps};
use crate::spec::{Spec, Until, pod, scenario};
use serde_json::{Value, json};

pub fn specs() -> Vec<Spec> {
    let logged = |name: &str, make: fn(&crate::spec::Run, &mut Value)| {
        scenario(name, move |run| async move {
            objects(&run).await;
            let mut pod = run.pod(&[]);
            make(&run, &mut pod);
            run.create(&pod).await?;
            run.until(&Until::Ended).await?;
            run.kubectl_fact(&["logs", &run.name]).await;
            Ok(())
        })
    };
    vec![
        logged("env-values", |_, pod| {
            prints(
                pod,
                &["arguments", "variable:A", "variable:B", "variable:C", "variable:D", "variable:E", "variable:F"],
            );
            pod["spec"]["containers"][0]["env"] = json!([
                {"name": "A", "value": "plain"}, {"name": "B", "value": "$(A)-$(NOT_THERE)-$$(A)-$A-$("},
                {"name": "C", "value": "$(D)"}, {"name": "D", "value": "later"}, {"name": "E", "value": ""},
                {"name": "A", "value": "again"}, {"name": "F"},
            ]);
            push(&mut pod["spec"]["containers"][0], "args", json!("print:$(A) $(NOT_THERE) $$(A)"));
        }),
        logged("env-command-and-args", |_, pod| {
            prints(pod, &["print:of-args", "arguments"]);
            pod["spec"]["containers"][0]["command"] = json!(["/program", "print:of-command"]);
        }),
        logged("env-sources", |run, pod| {
            prints(pod, &["variable:KEY", "variable:SECRET", "variable:NONE", "variable:NO_MAP", "names:P_"]);
            let name = &run.name;
            pod["spec"]["containers"][0]["env"] = json!([
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": name, "key": "key"}}},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": name, "key": "secret"}}},
                {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": name, "key": "no", "optional": true}}},
                {"name": "NO_MAP", "valueFrom": {"secretKeyRef": {"name": "not-there", "key": "no", "optional": true}}},
            ]);
            pod["spec"]["containers"][0]["envFrom"] = json!([
                {"prefix": "P_", "configMapRef": {"name": name}}, {"secretRef": {"name": name}},
                {"configMapRef": {"name": "not-there", "optional": true}},
            ]);
        }),
        logged("env-odd-names", |run, pod| {
            prints(pod, &["names:P", "names:with"]);
            pod["spec"]["containers"][0]["envFrom"] = json!([
                {"configMapRef": {"name": format!("{}-odd", run.name)}},
                {"prefix": "P", "configMapRef": {"name": format!("{}-odd", run.name)}},
            ]);
        }),
        logged("env-of-the-pod", |_, pod| {
            let fields = [
                "metadata.name",
                "metadata.namespace",
                "metadata.labels['app']",
                "metadata.annotations['note']",
                "spec.nodeName",
                "spec.serviceAccountName",
            ];
            let mut names = Vec::new();
            let mut env = Vec::new();
            for (index, field) in fields.iter().enumerate() {
                names.push(format!("variable:F{index}"));
                env.push(json!({"name": format!("F{index}"), "valueFrom": {"fieldRef": {"fieldPath": field}}}));
            }
            let resources =
                ["limits.cpu", "limits.memory", "requests.cpu", "requests.memory", "limits.ephemeral-storage"];
            for (index, resource) in resources.iter().enumerate() {
                names.push(format!("variable:R{index}"));
                env.push(
                    json!({"name": format!("R{index}"), "valueFrom": {"resourceFieldRef": {"resource": resource}}}),
                );
            }
            names.push("variable:D".to_owned());
            let divided = json!({"resource": "limits.memory", "divisor": "1Mi"});
            env.push(json!({"name": "D", "valueFrom": {"resourceFieldRef": divided}}));
            prints(pod, &names.iter().map(String::as_str).collect::<Vec<_>>());
            pod["metadata"]["labels"] = json!({"app": "labelled"});
            pod["metadata"]["annotations"] = json!({"note": "two\nlines"});
            pod["spec"]["containers"][0]["env"] = json!(env);
            pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1500m", "memory": "128Mi", "ephemeral-storage": "1Gi"}, "requests": {"cpu": "10m"}});
        }),
        logged("env-limits-of-the-pod", |_, pod| {
            let resources = ["limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
            let names = ["variable:R0", "variable:R1", "variable:R2", "variable:R3"];
            let env = resources.iter().enumerate().map(|(index, resource)| {
                json!({"name": format!("R{index}"), "valueFrom": {"resourceFieldRef": {"resource": resource}}})
            });
            prints(pod, &names);
            pod["spec"]["containers"][0]["env"] = env.collect();
            pod["spec"]["resources"] = json!({"limits": {"cpu": "2", "memory": "96Mi"}, "requests": {"cpu": "20m"}});
        }),
        logged("env-addresses-are-set", |_, pod| {
            prints(pod, &["names:IP"]);
            let of = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
            let paths = [("IP_POD", "status.podIP"), ("IP_PODS", "status.podIPs"), ("IP_HOST", "status.hostIP")];
            pod["spec"]["containers"][0]["env"] = json!(paths.map(|(name, path)| of(name, path)));
        }),
        logged("host-network", |_, pod| {
            prints(pod, &["names:IP"]);
            let of = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
            pod["spec"]["containers"][0]["env"] = json!([of("IP_POD", "status.podIP"), of("IP_HOST", "status.hostIP")]);
            pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 39_173}]);
            pod["spec"]["hostNetwork"] = json!(true);
        }),
        appears("env-config-map-missing-at-first", |run, pod| {
            let of = json!({"configMapKeyRef": {"name": format!("{}-later", run.name), "key": "key"}});
            pod["spec"]["containers"][0]["env"] = json!([{"name": "KEY", "valueFrom": of}]);
        }),
        appears("env-key-missing", |run, pod| {
            let of = json!({"configMapKeyRef": {"name": format!("{}-keyless", run.name), "key": "key"}});
            pod["spec"]["containers"][0]["env"] = json!([{"name": "KEY", "valueFrom": of}]);
        }),
        appears("env-secret-missing", |run, pod| {
            let from = json!({"secretRef": {"name": format!("{}-later", run.name)}});
            pod["spec"]["containers"][0]["envFrom"] = json!([from]);
        }),
        pod("env-config-map-missing-for-init", Until::Waiting("CreateContainerConfigError"), |run, pod| {
            let mut init = run.container("first", &["exit:0"]);
            init["envFrom"] = json!([{"configMapRef": {"name": "not-there"}}]);
            pod["spec"]["initContainers"] = json!([init]);
        }),
    ]
}

async fn objects(run: &crate::spec::Run) {
    let name = &run.name;
    run.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"key": "of the map", "other": "more", "lines": "a\nb"}}))
        .await;
    run.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"secret": "of the secret"}}))
        .await;
    run.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{name}-odd")},
        "data": {"with-dash": "1", "with.dot": "2", "1digit": "3", "plain": "4"}}))
        .await;
}

/// What a container needs comes after it has said that it waits for it.
fn appears(name: &str, make: fn(&crate::spec::Run, &mut Value)) -> Spec {
    scenario(name, move |run| async move {
        let keyless = format!("{}-keyless", run.name);
        run.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": keyless}, "data": {"x": "y"}}))
            .await;
        let mut pod = run.pod(&[]);
        steps(&mut pod, &["variable:KEY", SEEN, "forever"]);
        make(&run, &mut pod);
        run.create(&pod).await?;
        run.until(&Until::Waiting("CreateContainerConfigError")).await?;
        let data = json!({"key": "there"});
        run.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": keyless}, "data": data})).await;
        let later = format!("{}-later", run.name);
        run.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": later}, "data": data})).await;
        let secret = json!({"KEY": "there"});
        run.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": later}, "stringData": secret}))
            .await;
        run.until(&Until::Ready).await?;
        run.kubectl_fact(&["logs", &run.name]).await;
        Ok(())
    })
}
