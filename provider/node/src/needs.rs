//! What a program says that it needs ([`akri_krustlet_runtime::needs`]), beside what its pod gives it. Nothing is given by it: it is
//! told, so that whoever writes the pod does not have to find out.

use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::grants::{self, LINKS, NETWORK, UEVENTS};
use crate::loaded_image::LoadedImage;
use crate::pod::PodObject;
use crate::status::ContainerKind;
use akri_krustlet_discovery::host_path::AllowList;
use akri_krustlet_discovery::settings::ALLOWED_HOST_PATHS;
use akri_krustlet_runtime::Needs;
use akri_krustlet_runtime::events::{LinkNames, Subsystems};
use akri_krustlet_runtime::log::ContainerLog;
use akri_krustlet_runtime::needs::VolumeNeed;
use k8s_openapi::api::core::v1::Container;

/// What a pod gives a container nothing of. Something that is given in part is the operator's decision, and not missing.
pub fn missing(pod: &PodObject, container: &Container, needs: &Needs) -> Needs {
    let rules = grants::network_of(pod, container).unwrap_or_default();
    let events = grants::events(pod).unwrap_or_default();
    let allowed = pod.api.metadata.annotations.as_ref().and_then(|all| all.get(ALLOWED_HOST_PATHS));
    let allowed = allowed.and_then(|text| AllowList::parse(text).ok()).unwrap_or_default();
    let without = |texts: &[String], is_given: &dyn Fn(&str) -> bool| -> Vec<String> {
        texts.iter().filter(|text| !is_given(text)).cloned().collect()
    };
    let asked = needs.rules().unwrap_or_default();
    let network = needs.network.iter().zip(&asked).filter(|(_, asked)| !rules.give_some_of(asked));
    let mounts = || container.volume_mounts.iter().flatten();
    let is_mounted = |volume: &&VolumeNeed| mounts().any(|mount| is_below(&volume.path, &mount.mount_path));
    Needs {
        network: network.map(|(text, _)| text.clone()).collect(),
        optional_network: Vec::new(),
        optional_volumes: Vec::new(),
        uevents: without(&needs.uevents, &|name| match &events.uevents {
            None => false,
            Some(Subsystems::All) => true,
            Some(given) => name == "*" || given.contain(name),
        }),
        links: without(&needs.links, &|name| match &events.links {
            None => false,
            Some(LinkNames::All) => true,
            Some(given) => LinkNames::Named(vec![name.to_owned()]).and(given.clone()).is_some(),
        }),
        volumes: needs.volumes.iter().filter(|volume| !is_mounted(volume)).cloned().collect(),
        host_paths: without(&needs.host_paths, &|path| allowed.allows_some_of(path)),
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What a pod has to say so that a container of it has that, a line each.
pub fn pod_lines(needs: &Needs) -> Vec<String> {
    let Needs { network, uevents, links, volumes, host_paths, optional_network: _, optional_volumes: _ } = needs;
    let mut lines = Vec::new();
    if !network.is_empty() {
        lines.push("spec.hostNetwork: true".to_owned());
        lines.push(format!("annotation {NETWORK}: {}", network.join(" | ")));
    }
    for (annotation, names) in [(UEVENTS, uevents), (LINKS, links), (ALLOWED_HOST_PATHS, host_paths)] {
        if !names.is_empty() {
            lines.push(format!("annotation {annotation}: {}", names.join(", ")));
        }
    }
    for VolumeNeed { path, source, writable } in volumes {
        let source = source.as_ref().map(|source| format!(", of {source}")).unwrap_or_default();
        lines.push(format!("a volume mounted at {path}{source}{}", if *writable { ", writable" } else { "" }));
    }
    lines
}

/// The annotations of a pod that gives all of that, what can be done without included.
pub fn annotations(needs: &Needs) -> Vec<(&'static str, String)> {
    let Needs { network, optional_network, uevents, links, host_paths, .. } = needs;
    let rules = network.iter().chain(optional_network).map(|rule| format!("{rule}\n")).collect();
    let all = [
        (NETWORK, rules),
        (UEVENTS, uevents.join(", ")),
        (LINKS, links.join(", ")),
        (ALLOWED_HOST_PATHS, host_paths.join(",")),
    ];
    all.into_iter().filter(|(_, text): &(_, String)| !text.is_empty()).collect()
}

/// Tells in a container's log, and by an event, what its program needs and does not get.
pub fn warn_of_missing(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    image: &LoadedImage,
    log: &ContainerLog,
) {
    let missing = match &image.program.metadata().needs {
        Ok(needs) => needs.as_ref().map(|needs| missing(&context.latest(), container, needs)),
        Err(error) => return warn(context, kind, container, "MalformedNeeds", &error.to_string(), log),
    };
    if let Some(missing) = missing.filter(|missing| !missing.is_empty()) {
        let lines = pod_lines(&missing).join("; ");
        let what = format!("its module needs what its pod does not give: {lines}");
        warn(context, kind, container, "GrantsMissing", &what, log);
    }
}

fn warn(
    context: &PodContext,
    kind: ContainerKind,
    container: &Container,
    reason: &'static str,
    what: &str,
    log: &ContainerLog,
) {
    log.note(&format!("[akri-krustlet] {what}"));
    tracing::warn!(pod = context.pod.key(), container = container.name, "{what}");
    context.event(kind, &container.name, EventType::Warning, reason, format!("{}: {what}", container.name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(annotations: serde_json::Value, mounts: serde_json::Value) -> PodObject {
        let spec = json!({"hostNetwork": true, "containers": [{"name": "c", "volumeMounts": mounts}]});
        let pod = json!({"metadata": {"name": "p", "uid": "u", "annotations": annotations}, "spec": spec});
        PodObject::new(&serde_json::from_value(pod).unwrap(), None)
    }

    fn needs() -> Needs {
        serde_json::from_value(json!({
            "network": ["udp 239.255.255.250:3702", "http details", "tcp 10.0.0.0/8:80"],
            "optional-network": ["dns *"],
            "uevents": ["usb", "net"],
            "links": ["cam*"],
            "volumes": [{"path": "/sys/class", "source": "/sys/class"}, {"path": "/data", "writable": true}],
            "optional-volumes": ["/more"],
            "host-paths": ["/dev/video0"],
        }))
        .unwrap()
    }

    #[test]
    fn what_is_given_in_part_is_not_missing() {
        let nothing = pod(json!({}), json!([]));
        let asked = Needs { optional_network: Vec::new(), optional_volumes: Vec::new(), ..needs() };
        assert_eq!(missing(&nothing, &nothing.spec().containers[0], &needs()), asked);
        let all = pod(
            json!({
                NETWORK: "udp 239.0.0.0/8:3702\nhttp https://cameras.example/onvif/*\ntcp 10.1.0.0/16:80,443",
                UEVENTS: "*", LINKS: "cam0", ALLOWED_HOST_PATHS: "/dev/video*",
            }),
            json!([{"name": "v", "mountPath": "/sys/"}, {"name": "w", "mountPath": "/data"}]),
        );
        assert!(missing(&all, &all.spec().containers[0], &needs()).is_empty());
        let some = pod(
            json!({NETWORK: "tcp 10.0.0.0/8:443", UEVENTS: "usb", LINKS: "eth*", ALLOWED_HOST_PATHS: "/dev/null"}),
            json!([{"name": "v", "mountPath": "/sy"}]),
        );
        let left = missing(&some, &some.spec().containers[0], &needs());
        assert_eq!(
            pod_lines(&left),
            [
                "spec.hostNetwork: true",
                "annotation akri-krustlet/network: udp 239.255.255.250:3702 | tcp 10.0.0.0/8:80",
                "annotation akri-krustlet/uevents: net",
                "annotation akri-krustlet/links: cam*",
                "annotation akri-krustlet/allowed-host-paths: /dev/video0",
                "a volume mounted at /sys/class, of /sys/class",
                "a volume mounted at /data, writable",
            ]
        );
    }
}
