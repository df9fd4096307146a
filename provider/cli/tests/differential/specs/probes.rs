//! Probes of pods with the machine's network. The program is a component on this node: modules have no sockets.

use crate::spec::{Run, Spec, Until, pod};
use control_plane::port;
use serde_json::{Value, json};

pub fn specs() -> Vec<Spec> {
    vec![
        pod("probe-succeeds-late", Until::Ready, |run, pod| {
            // Both nodes are in one network.
            let port = port::free().unwrap();
            probed(run, pod, &["sleep:4000", &format!("serve:{port}")], port, &["readinessProbe", "startupProbe"]);
        }),
        // Until the first end: a kubelet's pauses between ends that probes cause are those of the end before.
        pod("probe-fails-at-startup", Until::Event("Killing"), |run, pod| {
            probed(run, pod, &["forever"], port::free().unwrap(), &["startupProbe", "readinessProbe"]);
        }),
        pod("probe-fails-for-ever", Until::Event("Killing"), |run, pod| {
            probed(run, pod, &["forever"], port::free().unwrap(), &["livenessProbe"]);
        }),
    ]
}

fn probed(run: &Run, pod: &mut Value, steps: &[&str], port: u16, probes: &[&str]) {
    let spec = &mut pod["spec"];
    spec["hostNetwork"] = true.into();
    // It does not hear that it is to end, so it runs on until all has been seen.
    spec["terminationGracePeriodSeconds"] = 60.into();
    spec["restartPolicy"] = "Always".into();
    let container = &mut spec["containers"][0];
    container["image"] = run.scene.image(run.kind, "served:v1").into();
    container["args"] = json!(steps);
    container["ports"] = json!([{"name": "lines", "containerPort": port}]);
    for probe in probes {
        // Time for the program to start, however busy the machine is, and for a result that is the same each time.
        let failures = if probe == &"livenessProbe" { 2 } else { 8 };
        container[probe] = json!({"tcpSocket": {"port": "lines"}, "periodSeconds": 1, "failureThreshold": failures});
    }
}
