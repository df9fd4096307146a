//! Specs put together at random; `SEED` repeats a run.

use super::{SEEN, push};
use crate::fixture::{Random, seed};
use crate::spec::{Spec, Until, pod};
use serde_json::{Value, json};

const NUMBER: u64 = 20;
const ENDS: [&str; 8] = ["exit:0", "exit:0", "exit:1", "exit:42", "exit:255", "abort", "fault", "forever"];
const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const PRINTS: [&str; 5] = ["print:hello", "lines:20", "error:oh", "arguments", "variable:V"];

pub fn specs() -> Vec<Spec> {
    let mut random = Random(seed());
    (0..NUMBER).map(|number| spec(&mut random, number)).collect()
}

/// What a container does at last.
struct Plan {
    steps: Vec<&'static str>,
    env: Vec<Value>,
    resources: Value,
}

fn plan(random: &mut Random, end: &'static str) -> Plan {
    let mut pick = |list: &[&'static str]| list[random.below(list.len() as u64) as usize];
    let steps = vec![pick(&PRINTS), pick(&PRINTS), SEEN, end];
    let env = if random.below(2) == 0 { vec![json!({"name": "V", "value": "$(V)-$$"})] } else { Vec::new() };
    let resources = match random.below(4) {
        0 => json!({"requests": {"cpu": "10m"}}),
        1 => json!({"limits": {"cpu": "25m", "memory": "64Mi"}}),
        2 => json!({"requests": {"cpu": "0", "memory": "8Mi"}, "limits": {"memory": "64Mi"}}),
        _ => json!({}),
    };
    Plan { steps, env, resources }
}

fn spec(random: &mut Random, number: u64) -> Spec {
    let policy = POLICIES[random.below(3) as usize];
    let mut end = ENDS[random.below(ENDS.len() as u64) as usize];
    let init = (random.below(3) == 0).then(|| if random.below(3) == 0 { "exit:9" } else { "exit:0" });
    let other = random.below(3) == 0;
    // One container at most is restarted, so that the pod comes to a state in which it stays for a while.
    if other && policy == "Always" && end != "forever" {
        end = "exit:1";
    }
    let restarts = |end: &str| end != "forever" && (policy == "Always" || (policy == "OnFailure" && end != "exit:0"));
    let until = match init {
        Some("exit:9") if policy == "Never" => Until::Ended,
        Some("exit:9") => Until::Restarted(1),
        _ if restarts(end) => Until::Restarted(1),
        _ if end == "forever" => Until::Ready,
        // The other one runs on.
        _ if other => Until::Containers(1),
        _ => Until::Ended,
    };
    let main = plan(random, end);
    let init = init.map(|end| plan(random, end));
    let other = other.then(|| plan(random, "forever"));
    pod(format!("random-{number:02}"), until, move |run, pod| {
        super::policy(pod, policy);
        let container = |name: &str, plan: &Plan| {
            let mut container = run.container(name, &plan.steps);
            container["env"] = json!(plan.env);
            container["resources"] = plan.resources.clone();
            container
        };
        pod["spec"]["containers"] = json!([container("main", &main)]);
        if let Some(init) = &init {
            pod["spec"]["initContainers"] = json!([container("first", init)]);
        }
        if let Some(other) = &other {
            push(&mut pod["spec"], "containers", container("other", other));
        }
    })
}
