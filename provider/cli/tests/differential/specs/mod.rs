//! The specs, by what they are about.

mod changes;
mod deletion;
mod endings;
mod environment;
mod images;
mod logs;
mod nodes;
mod probes;
mod random;
mod resources;
mod volumes;
mod workloads;

use crate::spec::Spec;
use serde_json::{Value, json};

/// Each about pods of its own; any number at a time.
pub fn of_pods() -> Vec<Spec> {
    let groups = [
        // The longest first.
        endings::specs(),
        probes::specs(),
        workloads::specs(),
        environment::specs(),
        deletion::specs(),
        images::specs(),
        volumes::specs(),
        changes::specs(),
        logs::specs(),
        resources::specs(),
        random::specs(),
    ];
    groups.into_iter().flatten().collect()
}

/// About a node and all that is on it.
pub fn of_nodes() -> Vec<Spec> {
    nodes::specs()
}

/// Long enough that a kubelet, which looks once a second, sees a container run.
const SEEN: &str = "sleep:4000";

fn steps(pod: &mut Value, steps: &[&str]) {
    pod["spec"]["containers"][0]["args"] = json!(steps);
}

fn policy(pod: &mut Value, policy: &str) {
    pod["spec"]["restartPolicy"] = json!(policy);
}

/// Ends with this after it was seen to run, and is not restarted.
fn ends(pod: &mut Value, end: &str) {
    steps(pod, &[SEEN, end]);
    policy(pod, "Never");
}

/// Prints what these steps print, and ends.
fn prints(pod: &mut Value, what: &[&str]) {
    steps(pod, &[what, &[SEEN]].concat());
    policy(pod, "Never");
}

/// Adds a volume, mounted in the first container.
fn volume(pod: &mut Value, name: &str, source: Value, mount: Value) {
    let mut volume = source;
    volume["name"] = json!(name);
    push(&mut pod["spec"], "volumes", volume);
    let mut mount = mount;
    mount["name"] = json!(name);
    push(&mut pod["spec"]["containers"][0], "volumeMounts", mount);
}

fn push(object: &mut Value, list: &str, value: Value) {
    match object[list].as_array_mut() {
        Some(list) => list.push(value),
        None => object[list] = json!([value]),
    }
}
