//! Whether a pod that was bound to this node belongs and fits here, as a kubelet checks once more after the scheduler.

use crate::pod::{PodObject, is_sidecar};
use crate::quantity;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, ResourceRequirements, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Why a pod is turned away. The reason is the one that a kubelet gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// In one word, as `OutOfcpu`.
    pub reason: String,
    /// In words.
    pub message: String,
}

/// What the pods on the node have asked for.
#[derive(Debug, Default)]
pub struct Admitted {
    requests: Mutex<HashMap<String, Requests>>,
}

/// Thousandths of a core; bytes.
type Requests = BTreeMap<String, u64>;

/// Resources that are counted here. Others, such as devices, are allocated elsewhere.
const COUNTED: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

impl Admitted {
    /// Admits a pod to `node` and counts it in, or tells why not. A pod that ran here before is counted in without asking.
    pub fn admit(&self, pod: &PodObject, node: Option<&Node>, ran_before: bool) -> Result<(), Rejection> {
        let node = node.filter(|_| !ran_before);
        node.map_or(Ok(()), |node| belongs(pod, node))?;
        self.resize(pod, node)
    }

    /// Counts a pod in that ran here before.
    pub fn count(&self, pod: &PodObject) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid().to_owned(), requests(pod));
    }

    /// Counts a pod with what it asks for now if `node` has that beside the others, or tells why not, in a kubelet's words.
    pub fn resize(&self, pod: &PodObject, node: Option<&Node>) -> Result<(), Rejection> {
        let requested = requests(pod);
        let mut admitted = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = node {
            let others: Vec<_> =
                admitted.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, requests)| requests).collect();
            fits(&requested, &others, node)?;
        }
        admitted.insert(pod.uid().to_owned(), requested);
        Ok(())
    }

    /// A pod has ended; what it asked for is free.
    pub fn release(&self, uid: &str) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

fn fits(requested: &Requests, others: &[&Requests], node: &Node) -> Result<(), Rejection> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let amount = |name: &str| allocatable.get(name).and_then(|quantity| amount(name, &quantity.0));
    let out_of = |name: &str, requested: u64, used: u64, capacity: u64| Rejection {
        reason: format!("OutOf{name}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    };
    if let Some(capacity) = amount("pods").filter(|capacity| others.len() as u64 + 1 > *capacity) {
        return Err(out_of("pods", 1, others.len() as u64, capacity));
    }
    for name in COUNTED {
        let Some(wanted) = requested.get(name).filter(|wanted| **wanted > 0) else { continue };
        let used = total(others.iter().filter_map(|requests| requests.get(name).copied()));
        if let Some(capacity) = amount(name).filter(|capacity| used.saturating_add(*wanted) > *capacity) {
            return Err(out_of(name, *wanted, used, capacity));
        }
    }
    Ok(())
}

/// What a pod asks for of a resource that is counted here.
pub fn requested(pod: &PodObject, resource: &str) -> u64 {
    requests(pod).get(resource).copied().unwrap_or(0)
}

/// What the pod asks for as a whole, where it does; else the sum over the containers and the sidecars, or the largest init container
/// with the sidecars before it if that is more. The pod's overhead besides.
fn requests(pod: &PodObject) -> Requests {
    let of = |resources: Option<&ResourceRequirements>, name: &str| {
        let resources = resources?;
        let requested = resources.requests.as_ref().and_then(|requests| requests.get(name));
        let limited = resources.limits.as_ref().and_then(|limits| limits.get(name));
        amount(name, &requested.or(limited)?.0)
    };
    let overhead = |name: &str| pod.spec().overhead.as_ref().and_then(|overhead| amount(name, &overhead.get(name)?.0));
    COUNTED
        .into_iter()
        .map(|name| {
            let containers =
                total(pod.spec().containers.iter().filter_map(|container| of(container.resources.as_ref(), name)));
            let (mut sidecars, mut init) = (0u64, 0u64);
            for container in pod.init_containers() {
                let wanted = of(container.resources.as_ref(), name).unwrap_or(0);
                if is_sidecar(container) {
                    sidecars = sidecars.saturating_add(wanted);
                    init = init.max(sidecars);
                } else {
                    init = init.max(sidecars.saturating_add(wanted));
                }
            }
            let most = containers.saturating_add(sidecars).max(init);
            let most = whole(pod.spec().resources.as_ref(), name, most);
            (name.to_owned(), most.saturating_add(overhead(name).unwrap_or(0)))
        })
        .collect()
}

/// What the pod asks for as a whole; without that, as the API server fills it in: what its containers ask for, or its limit.
fn whole(resources: Option<&ResourceRequirements>, name: &str, of_containers: u64) -> u64 {
    let of = |amounts: Option<&BTreeMap<String, Quantity>>| amount(name, &amounts?.get(name)?.0);
    let requested = resources.and_then(|resources| of(resources.requests.as_ref()));
    let limited = resources.and_then(|resources| of(resources.limits.as_ref()));
    requested.or(Some(of_containers).filter(|amount| *amount > 0)).or(limited).unwrap_or(0)
}

fn amount(name: &str, quantity: &str) -> Option<u64> {
    let quantity = quantity::parse(quantity).ok()?;
    Some(if name == "cpu" { quantity.millis() } else { quantity.ceil() })
}

/// The sum of amounts, each of which may be as large as can be.
fn total(amounts: impl Iterator<Item = u64>) -> u64 {
    amounts.fold(0, u64::saturating_add)
}

fn belongs(pod: &PodObject, node: &Node) -> Result<(), Rejection> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&NONE);
    let affinity = |message: String| Rejection { reason: "NodeAffinity".to_owned(), message };
    let missing = pod.spec().node_selector.iter().flatten().find(|(key, value)| labels.get(*key) != Some(*value));
    if let Some((key, value)) = missing {
        return Err(affinity(format!(
            "Pod was rejected: the node has no label {key}={value}, which its nodeSelector asks for"
        )));
    }
    let required = pod.spec().affinity.as_ref().and_then(|affinity| {
        affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    });
    if let Some(selector) = required {
        let name = node.metadata.name.clone().unwrap_or_default();
        let fields = BTreeMap::from([("metadata.name".to_owned(), name)]);
        let term_matches = |term: &k8s_openapi::api::core::v1::NodeSelectorTerm| {
            let mut expressions = term.match_expressions.iter().flatten();
            let mut field_expressions = term.match_fields.iter().flatten();
            expressions.all(|expression| matches(expression, labels))
                && field_expressions.all(|expression| matches(expression, &fields))
        };
        if !selector.node_selector_terms.iter().any(term_matches) {
            return Err(affinity(
                "Pod was rejected: none of its required nodeAffinity terms matches the node".to_owned(),
            ));
        }
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
    let untolerated = |taint: &&Taint| {
        taint.effect == "NoExecute" && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    };
    match taints.iter().find(untolerated) {
        Some(taint) => Err(Rejection {
            reason: "TaintToleration".to_owned(),
            message: format!(
                "Pod was rejected: it does not tolerate the node's taint {}={}:{}",
                taint.key,
                taint.value.as_deref().unwrap_or_default(),
                taint.effect
            ),
        }),
        None => Ok(()),
    }
}

fn matches(expression: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&expression.key);
    let values = expression.values.as_deref().unwrap_or_default();
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    match expression.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => matches!((number(value), number(values.first())), (Some(value), Some(bound)) if value > bound),
        "Lt" => matches!((number(value), number(values.first())), (Some(value), Some(bound)) if value < bound),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        _ => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn pod(uid: &str, spec: Value) -> PodObject {
        let pod = json!({"metadata": {"name": "p", "uid": uid}, "spec": spec});
        PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None }
    }

    fn node() -> Node {
        let taint = json!({"key": "kubernetes.io/arch", "value": "wasm32-wasi", "effect": "NoExecute"});
        serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"kubernetes.io/arch": "wasm32-wasi", "size": "4"}},
            "spec": {"taints": [taint]},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}},
        }))
        .unwrap()
    }

    fn tolerant(mut spec: Value) -> Value {
        spec["tolerations"] = json!([{"key": "kubernetes.io/arch", "operator": "Equal", "value": "wasm32-wasi"}]);
        spec
    }

    fn requesting(resource: &str, amount: &str) -> Value {
        tolerant(json!({"containers": [{"name": "c", "resources": {"requests": {resource: amount}}}]}))
    }

    fn reason(spec: Value) -> Result<(), String> {
        let admitted = Admitted::default();
        admitted.admit(&pod("1", spec), Some(&node()), false).map_err(|rejection| rejection.reason)
    }

    #[test]
    fn a_pod_that_does_not_fit_beside_the_others_is_turned_away_until_they_end() {
        let admitted = Admitted::default();
        let (first, second) = (pod("1", requesting("cpu", "1500m")), pod("2", requesting("cpu", "600m")));
        admitted.admit(&first, Some(&node()), false).unwrap();
        let rejection = admitted.admit(&second, Some(&node()), false).unwrap_err();
        assert_eq!(rejection.reason, "OutOfcpu");
        assert!(rejection.message.ends_with("requested: 600, used: 1500, capacity: 2000"), "{}", rejection.message);
        admitted.release("1");
        admitted.admit(&second, Some(&node()), false).unwrap();
        let small = |uid| pod(uid, tolerant(json!({"containers": [{"name": "c"}]})));
        admitted.admit(&small("3"), Some(&node()), false).unwrap();
        assert_eq!(admitted.admit(&small("4"), Some(&node()), false).unwrap_err().reason, "OutOfpods");
        admitted.admit(&small("5"), Some(&node()), true).unwrap();
        let as_a_whole = |uid, resources: Value| {
            let mut spec = requesting("cpu", "600m");
            spec["resources"] = resources;
            pod(uid, spec)
        };
        assert_eq!(requested(&as_a_whole("6", json!({"requests": {"cpu": "700m"}})), "cpu"), 700);
        assert_eq!(requested(&as_a_whole("6", json!({"limits": {"cpu": "800m"}})), "cpu"), 600);
        assert_eq!(requested(&as_a_whole("6", json!({"limits": {"memory": "1Mi"}})), "memory"), 1 << 20);
        assert_eq!(requested(&as_a_whole("6", json!({"requests": {"memory": "1Mi"}})), "cpu"), 600);
        assert_eq!(reason(requesting("memory", "2Gi")), Err("OutOfmemory".to_owned()));
    }

    #[test]
    fn selector_affinity_and_taints_are_checked() {
        let with = |field: &str, value: Value| {
            let mut spec = tolerant(json!({"containers": []}));
            spec[field] = value;
            reason(spec)
        };
        let refused = |reason: &str| Err(reason.to_owned());
        assert_eq!(with("nodeSelector", json!({"kubernetes.io/arch": "wasm32-wasi"})), Ok(()));
        assert_eq!(with("nodeSelector", json!({"kubernetes.io/arch": "amd64"})), refused("NodeAffinity"));
        let affinity = |operator: &str, values: Value| {
            let expression = json!({"key": "size", "operator": operator, "values": values});
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}})
        };
        for (operator, values, fits) in [
            ("In", json!(["4", "5"]), true),
            ("NotIn", json!(["4"]), false),
            ("Exists", json!([]), true),
            ("DoesNotExist", json!([]), false),
            ("Gt", json!(["3"]), true),
            ("Lt", json!(["3"]), false),
        ] {
            assert_eq!(with("affinity", affinity(operator, values)).is_ok(), fits, "{operator}");
        }
        assert_eq!(reason(json!({"containers": []})), refused("TaintToleration"));
        assert_eq!(reason(json!({"containers": [], "tolerations": [{"operator": "Exists"}]})), Ok(()));
    }
}
