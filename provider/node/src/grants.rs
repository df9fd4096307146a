//! What a pod grants its containers beyond themselves, as its manifest says it.

use crate::pod::PodObject;
use akri_krustlet_runtime::EventGrant;
use akri_krustlet_runtime::events::{LinkNames, Subsystems};
use akri_krustlet_runtime::network::NetworkRules;
use akri_krustlet_runtime::network::rules::{MOST_RULES, Ports, Protocol, Rule, RuleError};
use k8s_openapi::api::core::v1::{Container, ContainerPort};
use std::sync::Arc;

/// Annotation: the rules of its containers' network, one a line.
pub const NETWORK: &str = "akri-krustlet/network";
/// Variable of a container: more rules, for it alone. The pods that Akri makes of a Configuration have no annotations.
pub const NETWORK_VARIABLE: &str = "AKRI_KRUSTLET_NETWORK";

/// Annotation: the subsystems whose uevents its containers may follow.
pub const UEVENTS: &str = "akri-krustlet/uevents";
/// Annotation: the network links that its containers may list.
pub const LINKS: &str = "akri-krustlet/links";

/// Longest name of a subsystem and of a link, and most names of one annotation.
const MOST_SUBSYSTEM: usize = 63;
const MOST_LINK: usize = 15;
const MOST_NAMES: usize = 64;
/// Ports of one container.
const MOST_PORTS: usize = 256;

/// A grant that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrantError {
    /// A line of the annotation is no rule.
    #[error("annotation {NETWORK}, {0} (docs/grants.md has all rules)")]
    Rule(#[from] RuleError),
    /// A line of a container's variable is no rule.
    #[error("container {container}: variable {NETWORK_VARIABLE}, {error} (docs/grants.md has all rules)")]
    Variable {
        /// The container.
        container: String,
        /// What is wrong.
        error: RuleError,
    },
    /// Rules that are somewhere else than in the pod.
    #[error(
        "container {container}: variable {NETWORK_VARIABLE} has a valueFrom; its rules must be in the pod itself, as its value"
    )]
    NoValue {
        /// The container.
        container: String,
    },
    /// More rules, of the annotation and the variable together, than are looked at for each datagram.
    #[error(
        "container {container}: it has {count} rules, of annotation {NETWORK} and variable {NETWORK_VARIABLE}; {MOST_RULES} can be had (docs/grants.md)"
    )]
    Rules {
        /// The container.
        container: String,
        /// How many it has.
        count: usize,
    },
    /// The pod does not say that it uses the machine's network.
    #[error("{0}: the network of a guest is the machine's; say so in the pod, with spec.hostNetwork: true")]
    HostNetwork(String),
    /// What an annotation lists is no name.
    #[error(
        "annotation {annotation}: {name:?} is no name; expected names with commas between, or `*` for all (docs/grants.md)"
    )]
    Name {
        /// The annotation.
        annotation: &'static str,
        /// What it has.
        name: String,
    },
    /// More ports than anybody lists by hand.
    #[error(
        "container {container}: it has {count} ports, {MOST_PORTS} can be listed; give ranges by a rule `listen tcp PORTS` (docs/grants.md)"
    )]
    Ports {
        /// The container.
        container: String,
        /// How many it has.
        count: usize,
    },
    /// An annotation lists nothing, or too much.
    #[error("annotation {annotation}: it has {count} names, 1 to {MOST_NAMES} can be listed; `*` stands for all")]
    Names {
        /// The annotation.
        annotation: &'static str,
        /// How many there are.
        count: usize,
    },
}

/// The network of a discovery handler: by its pod's rules and its own.
pub fn network_of_handler(pod: &PodObject, container: &Container) -> Result<Arc<NetworkRules>, GrantError> {
    let mut rules = network(pod)?;
    if let Some(own) = own_rules(pod, container)? {
        let rules = &mut Arc::make_mut(&mut rules).0;
        rules.extend(own.0);
        if rules.len() > MOST_RULES {
            return Err(GrantError::Rules { container: container.name.clone(), count: rules.len() });
        }
    }
    Ok(rules)
}

/// The network that a pod grants all its containers.
fn network(pod: &PodObject) -> Result<Arc<NetworkRules>, GrantError> {
    let Some(text) = annotation(pod, NETWORK) else { return Ok(Arc::default()) };
    let rules: NetworkRules = text.parse()?;
    if !is_host_network(pod) {
        return Err(GrantError::HostNetwork(format!("annotation {NETWORK}")));
    }
    Ok(Arc::new(rules))
}

/// The network of one container that is no discovery handler: the same, and its ports, which it may listen on.
pub fn network_of(pod: &PodObject, container: &Container) -> Result<Arc<NetworkRules>, GrantError> {
    let mut rules = network_of_handler(pod, container)?;
    let ports = container.ports.as_deref().unwrap_or_default();
    if ports.len() > MOST_PORTS {
        return Err(GrantError::Ports { container: container.name.clone(), count: ports.len() });
    }
    if is_host_network(pod) {
        Arc::make_mut(&mut rules).0.extend(ports.iter().filter_map(served));
    }
    Ok(rules)
}

/// The rules of a container's variable, if it has that.
fn own_rules(pod: &PodObject, container: &Container) -> Result<Option<NetworkRules>, GrantError> {
    let mut variables = container.env.iter().flatten();
    // Of several of one name the last one counts.
    let Some(variable) = variables.rfind(|variable| variable.name == NETWORK_VARIABLE) else { return Ok(None) };
    let container = container.name.clone();
    if variable.value_from.is_some() {
        return Err(GrantError::NoValue { container });
    }
    if !is_host_network(pod) {
        return Err(GrantError::HostNetwork(format!("container {container}: variable {NETWORK_VARIABLE}")));
    }
    // The API server leaves an empty value out. What stands there counts, `$(NAME)` is not replaced.
    let text = variable.value.as_deref().unwrap_or_default();
    text.parse().map(Some).map_err(|error| GrantError::Variable { container, error })
}

fn is_host_network(pod: &PodObject) -> bool {
    pod.spec().host_network == Some(true)
}

/// Listening on a port of a container.
fn served(port: &ContainerPort) -> Option<Rule> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        // WASI has no others.
        Some(_) => return None,
    };
    Some(Rule::Listen { protocol, ports: Ports::one(u16::try_from(port.container_port).ok()?) })
}

/// What of the machine's events a pod grants its containers.
pub fn events(pod: &PodObject) -> Result<EventGrant, GrantError> {
    let subsystems = names(pod, UEVENTS, MOST_SUBSYSTEM)?;
    let is_all = |names: &Vec<String>| names.iter().any(|name| name == "*");
    if let Some(name) = subsystems.iter().flatten().find(|name| name.len() > 1 && name.contains('*')) {
        return Err(GrantError::Name { annotation: UEVENTS, name: name.clone() });
    }
    Ok(EventGrant {
        uevents: subsystems.map(|names| match is_all(&names) {
            true => Subsystems::All,
            false => Subsystems::Named(names.into_iter().collect()),
        }),
        links: names(pod, LINKS, MOST_LINK)?.map(|names| match is_all(&names) {
            true => LinkNames::All,
            false => LinkNames::Named(names),
        }),
    })
}

/// The names that an annotation lists, with commas or blanks between; none without it.
fn names(pod: &PodObject, annotation: &'static str, longest: usize) -> Result<Option<Vec<String>>, GrantError> {
    let Some(text) = self::annotation(pod, annotation) else { return Ok(None) };
    let names = text.split([',', ' ', '\t', '\n']).filter(|name| !name.is_empty());
    let is_name = |name: &str| {
        let plain = name.strip_suffix('*').unwrap_or(name);
        name.len() <= longest && plain.bytes().all(|byte| byte.is_ascii_graphic() && !b"/*\"'".contains(&byte))
    };
    let names: Vec<_> = names.map(str::to_owned).collect();
    match names.iter().find(|name| !is_name(name)) {
        Some(name) => Err(GrantError::Name { annotation, name: name.clone() }),
        None if names.is_empty() || names.len() > MOST_NAMES => {
            Err(GrantError::Names { annotation, count: names.len() })
        }
        None => Ok(Some(names)),
    }
}

fn annotation<'a>(pod: &'a PodObject, name: &str) -> Option<&'a str> {
    pod.api.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_has_its_pods_rules_and_those_of_its_variable() {
        let of = |metadata: serde_json::Value, host_network: bool, variable: serde_json::Value| {
            let container = json!({"name": "c", "ports": [{"containerPort": 80}], "env": [variable]});
            let pod = json!({"metadata": metadata, "spec": {"hostNetwork": host_network, "containers": [container]}});
            let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
            let rules = network_of(&pod, &pod.spec().containers[0]).map_err(|error| error.to_string())?;
            Ok::<_, String>(rules.0.clone())
        };
        let expected = |text: &str| Ok(format!("{text}\nlisten tcp 80").parse::<NetworkRules>().unwrap().0);
        let metadata = || json!({"name": "p", "uid": "u"});
        let annotated = || json!({"name": "p", "uid": "u", "annotations": {NETWORK: "tcp 10.0.0.1:80"}});
        let other = || json!({"name": "OTHER", "value": "tcp 10.0.0.1:80"});
        let rules = |text: &str| json!({"name": NETWORK_VARIABLE, "value": text});
        assert_eq!(of(metadata(), false, other()), Ok(Vec::new()));
        assert_eq!(of(metadata(), true, other()), expected(""), "nothing that is not said");
        assert_eq!(of(annotated(), true, other()), expected("tcp 10.0.0.1:80"));
        let both = "tcp 127.0.0.1:4840\ndns a.example";
        assert_eq!(of(metadata(), true, rules(both)), expected(both));
        assert_eq!(of(metadata(), true, rules("")), expected(""));
        assert_eq!(of(metadata(), true, json!({"name": NETWORK_VARIABLE})), expected(""), "as the API server has that");
        let twice = expected("tcp 10.0.0.1:80\nudp 10.0.0.1:53");
        assert_eq!(of(annotated(), true, rules("udp 10.0.0.1:53")), twice, "the annotation's and the variable's");
        for (host_network, variable, what) in [
            (false, rules("tcp 10.0.0.1:80"), "container c: variable AKRI_KRUSTLET_NETWORK: the network of a guest"),
            (true, rules("tcp 10.0.0.1:80\ntcp x"), "container c: variable AKRI_KRUSTLET_NETWORK, line 2"),
            (true, rules(&"dns *\n".repeat(256)), "it has 257 rules"),
            (true, json!({"name": NETWORK_VARIABLE, "valueFrom": {}}), "its rules must be in the pod itself"),
        ] {
            let metadata = if what.contains("257") { annotated() } else { metadata() };
            let error = of(metadata, host_network, variable).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    fn of(annotation: &str, host_network: bool) -> Result<Arc<NetworkRules>, String> {
        let pod = json!({"metadata": {"name": "p", "uid": "u", "annotations": {NETWORK: annotation}},
            "spec": {"hostNetwork": host_network, "containers": []}});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        network(&pod).map_err(|error| error.to_string())
    }

    #[test]
    fn events_are_granted_by_names() {
        let of = |name: &str, value: &str| {
            let pod = json!({"metadata": {"name": "p", "uid": "u", "annotations": {name: value}}, "spec": {"containers": []}});
            let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
            events(&pod).map_err(|error| error.to_string())
        };
        let named = of(UEVENTS, "usb, video4linux\n").unwrap().uevents.unwrap();
        assert!(named.contain("usb") && named.contain("video4linux") && !named.contain("net"));
        assert_eq!(of(UEVENTS, "*").unwrap(), EventGrant { uevents: Some(Subsystems::All), links: None });
        let links = of(LINKS, "eth0,cam*").unwrap().links.unwrap();
        assert!(links.contain("cam7") && !links.contain("eth1"));
        for (name, value, what) in [
            (UEVENTS, "us*", "\"us*\" is no name"),
            (UEVENTS, "", "it has 0 names"),
            (LINKS, "a/b", "\"a/b\" is no name"),
            (LINKS, "a-link-with-a-long-name", "is no name"),
        ] {
            let error = of(name, value).unwrap_err();
            assert!(error.contains(what) && error.contains(name), "{error}");
        }
        assert_eq!(of("other", "x").unwrap(), EventGrant::default());
    }

    #[test]
    fn a_network_is_granted_by_rules_and_by_the_pods_word() {
        assert_eq!(of("tcp 10.0.0.1:80", true).unwrap().0.len(), 1);
        assert!(of("tcp 10.0.0.1:80", false).unwrap_err().contains("spec.hostNetwork: true"));
        assert!(of("tcp 10.0.0.1", true).unwrap_err().contains("annotation akri-krustlet/network, line 1"));
        assert!(of("# nothing\n", true).unwrap().0.is_empty());
    }

    #[test]
    fn a_handler_has_its_pods_rules_and_its_own_and_no_others() {
        let of = |variables: serde_json::Value| {
            let metadata = json!({"name": "p", "uid": "u", "annotations": {NETWORK: "tcp details"}});
            let container = json!({"name": "c", "ports": [{"containerPort": 80}], "env": variables});
            let pod = json!({"metadata": metadata, "spec": {"hostNetwork": true, "containers": [container]}});
            let pod = PodObject::new(&serde_json::from_value(pod).unwrap(), None);
            network_of_handler(&pod, &pod.spec().containers[0]).unwrap().0.clone()
        };
        let expected = |text: &str| text.parse::<NetworkRules>().unwrap().0;
        assert_eq!(of(json!([])), expected("tcp details"));
        let variable = json!([{"name": NETWORK_VARIABLE, "value": "dns *"}]);
        assert_eq!(of(variable), expected("tcp details\ndns *"));
    }

    #[test]
    fn a_container_may_listen_on_its_own_ports() {
        let pod = |host_network: bool, ports: serde_json::Value| {
            let spec =
                json!({"hostNetwork": host_network, "containers": [{"name": "c", "ports": ports}, {"name": "d"}]});
            let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
            PodObject::new(&serde_json::from_value(pod).unwrap(), None)
        };
        let ports = json!([{"containerPort": 80}, {"containerPort": 81, "protocol": "UDP"}, {"containerPort": 82, "protocol": "SCTP"}]);
        let of = |pod: &PodObject, number: usize| {
            let served = |rule: &Rule| matches!(rule, Rule::Listen { .. });
            network_of(pod, &pod.spec().containers[number])
                .map(|rules| rules.0.iter().filter(|rule| served(rule)).cloned().collect::<Vec<_>>())
        };
        let listens = |protocol, port| Rule::Listen { protocol, ports: Ports::one(port) };
        let with_network = pod(true, ports.clone());
        assert_eq!(of(&with_network, 0).unwrap(), [listens(Protocol::Tcp, 80), listens(Protocol::Udp, 81)]);
        assert!(of(&with_network, 1).unwrap().is_empty() && network(&with_network).unwrap().0.is_empty());
        assert!(of(&pod(false, ports), 0).unwrap().is_empty());
        let many: Vec<_> = (1..=257).map(|port| json!({"containerPort": port})).collect();
        assert!(of(&pod(true, many.into()), 0).unwrap_err().to_string().contains("it has 257 ports"));
    }
}
