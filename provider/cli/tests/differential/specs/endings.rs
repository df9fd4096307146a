//! Restart policies, and the ways in which a container ends; init containers likewise.

use super::{SEEN, ends, policy, push, steps};
use crate::spec::{Spec, Until, pod, scenario, took};
use serde_json::json;

/// Name of an end, and the step that brings it about.
const ENDS: [(&str, &str); 10] = [
    ("exit-0", "exit:0"),
    ("exit-1", "exit:1"),
    ("exit-3", "exit:3"),
    ("exit-126", "exit:126"),
    ("exit-137", "exit:137"),
    ("exit-143", "exit:143"),
    ("exit-255", "exit:255"),
    ("abort", "abort"),
    ("fault", "fault"),
    ("out-of-memory", "memory:200"),
];

pub fn specs() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (name, end) in ENDS {
        let limit = json!({"limits": {"memory": "64Mi"}});
        let limited = limit.clone();
        specs.push(pod(format!("never-{name}"), Until::Ended, move |_, pod| {
            ends(pod, end);
            pod["spec"]["containers"][0]["resources"] = limited.clone();
        }));
        if !["exit-1", "exit-126", "exit-143"].contains(&name) {
            let until = if end == "exit:0" { Until::Ended } else { Until::Restarted(1) };
            specs.push(pod(format!("on-failure-{name}"), until, move |_, pod| {
                ends(pod, end);
                policy(pod, "OnFailure");
                pod["spec"]["containers"][0]["resources"] = limit.clone();
            }));
        }
    }
    for (name, end) in [("exit-0", "exit:0"), ("exit-3", "exit:3"), ("fault", "fault")] {
        specs.push(scenario(format!("always-{name}"), move |run| async move {
            run.create(&run.pod(&[SEEN, end])).await?;
            run.until(&Until::Restarted(2)).await?;
            // The first restart comes at once, this one after a pause.
            let pause = run.recorder.history(run.kind, &run.name).pause_before(2);
            run.fact("pause before the second restart", pause.map_or("not seen".to_owned(), took));
            Ok(())
        }));
    }
    specs.push(pod("recovers-at-third-run", Until::Ended, |_, pod| {
        super::volume(pod, "kept", json!({"emptyDir": {}}), json!({"mountPath": "/kept"}));
        steps(pod, &[SEEN, "runs:/kept/runs=3"]);
        policy(pod, "OnFailure");
    }));
    specs.push(pod("two-containers-one-fails", Until::Ended, |run, pod| {
        ends(pod, "exit:0");
        push(&mut pod["spec"], "containers", run.container("other", &[SEEN, "exit:4"]));
    }));
    specs.push(pod("two-containers-one-runs-on", Until::Restarted(1), |run, pod| {
        steps(pod, &["forever"]);
        push(&mut pod["spec"], "containers", run.container("other", &[SEEN, "exit:4"]));
    }));
    specs.extend(init());
    specs.extend(sidecars());
    specs
}

fn init() -> Vec<Spec> {
    vec![
        pod("init-then-main", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            steps(pod, &[SEEN, SEEN, "exit:0"]);
            let init = ["first", "second"].map(|name| run.container(name, &[SEEN, "exit:0"]));
            pod["spec"]["initContainers"] = json!(init);
        }),
        pod("init-then-runs", Until::Ready, |run, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["initContainers"] = json!([run.container("first", &[SEEN, "exit:0"])]);
        }),
        pod("init-fails-never", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            let init = [("first", "exit:0"), ("second", "exit:3"), ("third", "exit:0")];
            let init = init.map(|(name, end)| run.container(name, &[SEEN, end]));
            pod["spec"]["initContainers"] = json!(init);
        }),
        pod("init-fails-always", Until::Restarted(1), |run, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["initContainers"] = json!([run.container("first", &[SEEN, "exit:3"])]);
        }),
        pod("init-recovers", Until::Ready, |run, pod| {
            steps(pod, &["forever"]);
            super::volume(pod, "kept", json!({"emptyDir": {}}), json!({"mountPath": "/kept"}));
            let mut init = run.container("first", &[SEEN, "runs:/kept/runs=2"]);
            init["volumeMounts"] = json!([{"name": "kept", "mountPath": "/kept"}]);
            pod["spec"]["initContainers"] = json!([init]);
        }),
        pod("init-faults", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            pod["spec"]["initContainers"] = json!([run.container("first", &[SEEN, "fault"])]);
        }),
        pod("init-runs-long", Until::Initializing, |run, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["initContainers"] = json!([run.container("first", &["forever"])]);
        }),
        pod("init-image-missing", Until::Waiting("ImagePullBackOff"), |run, pod| {
            steps(pod, &["forever"]);
            let mut init = run.container("first", &["exit:0"]);
            init["image"] = json!(run.scene.image(run.kind, "missing:v1"));
            pod["spec"]["initContainers"] = json!([init]);
        }),
        pod("main-image-missing-after-init", Until::Waiting("ImagePullBackOff"), |run, pod| {
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, "missing:v1"));
            pod["spec"]["initContainers"] = json!([run.container("first", &[SEEN, "exit:0"])]);
        }),
    ]
}

/// Init containers that run on.
fn sidecars() -> Vec<Spec> {
    vec![
        pod("sidecar-runs-on", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            pod["spec"]["terminationGracePeriodSeconds"] = json!(2);
            pod["spec"]["initContainers"] = json!([sidecar(run, "beside", &["forever"])]);
        }),
        pod("sidecar-hears-the-end", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            let mut sidecar = sidecar(run, "beside", &["wait", "exit:0"]);
            sidecar["stdin"] = json!(true);
            pod["spec"]["initContainers"] = json!([sidecar]);
        }),
        pod("sidecar-of-a-failure", Until::Ended, |run, pod| {
            ends(pod, "exit:3");
            pod["spec"]["terminationGracePeriodSeconds"] = json!(2);
            pod["spec"]["initContainers"] = json!([sidecar(run, "beside", &["forever"])]);
        }),
        pod("sidecar-beside-init", Until::Ready, |run, pod| {
            steps(pod, &["forever"]);
            let init = [
                run.container("first", &[SEEN, "exit:0"]),
                sidecar(run, "beside", &["forever"]),
                run.container("second", &[SEEN, "exit:0"]),
                sidecar(run, "too", &["forever"]),
            ];
            pod["spec"]["initContainers"] = json!(init);
        }),
        pod("sidecar-before-a-failing-init", Until::Ended, |run, pod| {
            ends(pod, "exit:0");
            pod["spec"]["terminationGracePeriodSeconds"] = json!(2);
            let init = [sidecar(run, "beside", &["forever"]), run.container("first", &[SEEN, "exit:3"])];
            pod["spec"]["initContainers"] = json!(init);
        }),
        pod("sidecar-that-ends", Until::Restarted(1), |run, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["initContainers"] = json!([sidecar(run, "beside", &[SEEN, "exit:0"])]);
        }),
        pod("sidecar-image-missing", Until::Waiting("ImagePullBackOff"), |run, pod| {
            steps(pod, &["forever"]);
            let mut sidecar = sidecar(run, "beside", &["forever"]);
            sidecar["image"] = json!(run.scene.image(run.kind, "missing:v1"));
            pod["spec"]["initContainers"] = json!([sidecar]);
        }),
        pod("sleeps-before-its-end", Until::Ended, |_, pod| {
            steps(pod, &["forever"]);
            pod["spec"]["activeDeadlineSeconds"] = json!(4);
            pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 3}}});
            pod["spec"]["terminationGracePeriodSeconds"] = json!(5);
        }),
        pod("readiness-gate-closed", Until::ContainersReady, gated),
        scenario("readiness-gate-opened", |run| async move {
            let mut pod = run.pod(&[]);
            gated(&run, &mut pod);
            run.create(&pod).await?;
            run.until(&Until::ContainersReady).await?;
            let open = json!({"status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}});
            run.patch_status(open).await?;
            run.until(&Until::Ready).await
        }),
    ]
}

fn gated(_: &crate::spec::Run, pod: &mut serde_json::Value) {
    steps(pod, &["forever"]);
    pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/gate"}]);
}

fn sidecar(run: &crate::spec::Run, name: &str, steps: &[&str]) -> serde_json::Value {
    let mut container = run.container(name, steps);
    container["restartPolicy"] = json!("Always");
    container
}
