//! Which devices a pod gets.
//!
//! # Guarantees
//! - All or nothing: a pod has all the devices that its containers ask for, or none.
//! - Only healthy devices of a plugin that answers, and none that another pod has.
//! - A container keeps its devices as long as its pod is there, over its restarts and the node's.
//! - What an init container had may be given to the containers after it, since it has ended by then.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What a pod asks for.
#[derive(Clone, Debug)]
pub struct PodRequest {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its containers, init containers first, in the order of their start.
    pub containers: Vec<ContainerRequest>,
}

/// What a container asks for.
#[derive(Clone, Debug)]
pub struct ContainerRequest {
    /// Its name.
    pub name: String,
    /// It ends before the next one starts.
    pub init: bool,
    /// How many of which resource.
    pub resources: BTreeMap<String, u64>,
}

/// Why a pod does not get its devices.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// Nobody offers the resource.
    #[error(
        "container {container} asks for {resource}, which no device plugin offers: is it running, and does it register at {}?",
        socket.display()
    )]
    Unknown {
        /// The container.
        container: String,
        /// The resource.
        resource: String,
        /// Where plugins register.
        socket: PathBuf,
    },
    /// Not as many as asked for are left.
    #[error(
        "container {container} asks for {requested} of {resource}: {free} of {all} devices are healthy and free{hint}"
    )]
    TooFew {
        /// The container.
        container: String,
        /// The resource.
        resource: String,
        /// How many it asks for.
        requested: u64,
        /// How many it could have.
        free: usize,
        /// How many there are.
        all: usize,
        /// `; its device plugin does not answer`, if so.
        hint: &'static str,
    },
    /// The plugin failed.
    #[error("the device plugin of {resource}: {call}: {message}")]
    Plugin {
        /// The resource.
        resource: String,
        /// Which call.
        call: &'static str,
        /// What happened.
        message: String,
        /// It answered, with an error.
        refused: bool,
    },
    /// What was given could not be remembered, and would be given again after a restart.
    #[error("cannot write {}: {source}; no device is given that would be forgotten", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl AllocationError {
    /// It may be otherwise in a moment: a plugin is being started.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::TooFew { .. })
    }

    /// The plugin said no.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Plugin { refused: true, .. })
    }
}

/// What a container needs to use its devices, as their plugins said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provided {
    /// Environment variables.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Files and directories of the host.
    #[serde(default)]
    pub mounts: Vec<ProvidedMount>,
    /// Device nodes, as paths of the host.
    #[serde(default)]
    pub device_nodes: Vec<String>,
    /// CDI device names.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// Variables that several resources set to different values: `NAME (of RESOURCE)`; the first one counts.
    #[serde(skip)]
    pub conflicts: Vec<String>,
}

/// A file or directory of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvidedMount {
    /// Where the container sees it.
    pub container_path: String,
    /// Where it is.
    pub host_path: String,
    /// The container cannot write.
    pub read_only: bool,
    /// The path comes from a discovery handler, by way of Akri: a symbolic link in it is not followed.
    #[serde(default)]
    pub without_links: bool,
}

impl Provided {
    /// Adds what another resource gives.
    pub(crate) fn merge(&mut self, resource: &str, other: &Self) {
        for (name, value) in &other.envs {
            match self.envs.get(name) {
                None => {
                    self.envs.insert(name.clone(), value.clone());
                }
                Some(known) if known != value => self.conflicts.push(format!("{name} (of {resource})")),
                Some(_) => {}
            }
        }
        for mount in &other.mounts {
            if !self.mounts.contains(mount) {
                self.mounts.push(mount.clone());
            }
        }
        self.device_nodes.extend(other.device_nodes.iter().cloned());
        self.cdi_devices.extend(other.cdi_devices.iter().cloned());
    }
}

/// What a pod has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodDevices {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) containers: Vec<ContainerDevices>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerDevices {
    pub(crate) name: String,
    /// By resource.
    pub(crate) granted: BTreeMap<String, Granted>,
}

/// Devices of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    pub(crate) ids: BTreeSet<String>,
    /// `None` until the plugin has said it.
    pub(crate) provided: Option<Provided>,
}

/// What can be given of a resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// Healthy devices of a plugin that answers.
    pub(crate) healthy: BTreeSet<String>,
    /// All devices.
    pub(crate) all: usize,
    pub(crate) answers: bool,
}

/// What devices plugins would rather give, by container and resource.
pub(crate) type Preferences = BTreeMap<(String, String), Vec<String>>;

impl PodDevices {
    /// Chooses devices for a pod; `earlier` is what it has already, `taken` what other pods have.
    pub(crate) fn choose(
        request: &PodRequest,
        earlier: Option<&Self>,
        offers: &BTreeMap<String, Offer>,
        taken: impl Fn(&str) -> BTreeSet<String>,
        preferences: &Preferences,
        socket: &std::path::Path,
    ) -> Result<Self, AllocationError> {
        let mut chosen =
            Self { namespace: request.namespace.clone(), name: request.name.clone(), containers: Vec::new() };
        let mut of_pod: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut left_by_init: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for container in &request.containers {
            let mut granted = BTreeMap::new();
            for (resource, &count) in container.resources.iter().filter(|(_, count)| **count > 0) {
                let wanted = usize::try_from(count).unwrap_or(usize::MAX);
                let reusable = left_by_init.entry(resource).or_default();
                let of_pod = of_pod.entry(resource).or_default();
                let kept = earlier
                    .and_then(|earlier| earlier.container(&container.name)?.granted.get(resource))
                    .filter(|kept| kept.ids.len() == wanted && kept.provided.is_some());
                let grant = match kept {
                    Some(kept) => kept.clone(),
                    None => {
                        let offer = offers.get(resource).ok_or_else(|| AllocationError::Unknown {
                            container: container.name.clone(),
                            resource: resource.clone(),
                            socket: socket.to_owned(),
                        })?;
                        let mut free: BTreeSet<_> = offer.healthy.difference(&taken(resource)).cloned().collect();
                        free = free.difference(of_pod).cloned().collect();
                        let preferred = preferences.get(&(container.name.clone(), resource.clone()));
                        let preferred = preferred.into_iter().flatten().filter(|id| free.contains(*id));
                        let mut ids: BTreeSet<String> = reusable.iter().take(wanted).cloned().collect();
                        for id in preferred.chain(&free) {
                            if ids.len() == wanted {
                                break;
                            }
                            ids.insert(id.clone());
                        }
                        if ids.len() < wanted {
                            return Err(AllocationError::TooFew {
                                container: container.name.clone(),
                                resource: resource.clone(),
                                requested: count,
                                free: free.len(),
                                all: offer.all,
                                hint: if offer.answers { "" } else { "; its device plugin does not answer" },
                            });
                        }
                        Granted { ids, provided: None }
                    }
                };
                of_pod.extend(grant.ids.iter().cloned());
                if container.init {
                    reusable.extend(grant.ids.iter().cloned());
                } else {
                    reusable.retain(|id| !grant.ids.contains(id));
                }
                granted.insert(resource.clone(), grant);
            }
            chosen.containers.push(ContainerDevices { name: container.name.clone(), granted });
        }
        Ok(chosen)
    }

    pub(crate) fn container(&self, name: &str) -> Option<&ContainerDevices> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The devices of a resource that the pod has.
    pub(crate) fn ids<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a String> {
        self.containers
            .iter()
            .filter_map(move |container| container.granted.get(resource))
            .flat_map(|granted| &granted.ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(ids: &[&str]) -> BTreeMap<String, Offer> {
        let healthy: BTreeSet<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        BTreeMap::from([("a/x".to_owned(), Offer { all: healthy.len(), healthy, answers: true })])
    }

    fn container(name: &str, init: bool, count: u64) -> ContainerRequest {
        ContainerRequest { name: name.to_owned(), init, resources: BTreeMap::from([("a/x".to_owned(), count)]) }
    }

    fn choose(
        containers: Vec<ContainerRequest>,
        free: &[&str],
        preferences: &Preferences,
    ) -> Result<PodDevices, AllocationError> {
        let request = PodRequest { uid: "u".into(), namespace: "n".into(), name: "p".into(), containers };
        PodDevices::choose(&request, None, &offers(free), |_| BTreeSet::new(), preferences, "/kubelet.sock".as_ref())
    }

    fn ids(pod: &PodDevices, container: &str) -> Vec<String> {
        pod.container(container).unwrap().granted["a/x"].ids.iter().cloned().collect()
    }

    #[test]
    fn as_many_as_there_are_can_be_had_and_one_more_cannot() {
        let none = Preferences::new();
        let pod = choose(vec![container("c", false, 1)], &["1"], &none).unwrap();
        assert_eq!(ids(&pod, "c"), ["1"]);
        let error = choose(vec![container("c", false, 1), container("d", false, 1)], &["1"], &none).unwrap_err();
        assert_eq!(error.to_string(), "container d asks for 1 of a/x: 0 of 1 devices are healthy and free");
    }

    #[test]
    fn what_init_containers_had_is_used_again_once() {
        let containers =
            vec![container("i", true, 2), container("j", true, 1), container("c", false, 1), container("d", false, 2)];
        let pod = choose(containers, &["1", "2", "3"], &Preferences::new()).unwrap();
        assert_eq!(ids(&pod, "i"), ["1", "2"]);
        assert_eq!(ids(&pod, "j"), ["1"]);
        let (of_c, of_d) = (ids(&pod, "c"), ids(&pod, "d"));
        assert!(of_c.iter().all(|id| !of_d.contains(id)), "{of_c:?} {of_d:?}");
    }

    #[test]
    fn preferences_count_among_what_is_free() {
        let preferences = Preferences::from([(("c".into(), "a/x".into()), vec!["9".into(), "3".into()])]);
        let pod = choose(vec![container("c", false, 2)], &["1", "2", "3"], &preferences).unwrap();
        assert_eq!(ids(&pod, "c"), ["1", "3"]);
    }

    #[test]
    fn what_a_pod_has_it_keeps_without_asking_for_it() {
        let given = choose(vec![container("c", false, 1)], &["2"], &Preferences::new()).unwrap();
        let mut earlier = given.clone();
        earlier.containers[0].granted.get_mut("a/x").unwrap().provided = Some(Provided::default());
        let request = PodRequest {
            uid: "u".into(),
            namespace: "n".into(),
            name: "p".into(),
            containers: vec![container("c", false, 1)],
        };
        let none = BTreeMap::new();
        let nothing = |_: &str| BTreeSet::new();
        let chosen = PodDevices::choose(&request, Some(&earlier), &none, nothing, &Preferences::new(), "/s".as_ref());
        assert_eq!(chosen.unwrap(), earlier);
        // Unless its plugin was never asked.
        assert!(
            PodDevices::choose(&request, Some(&given), &none, nothing, &Preferences::new(), "/s".as_ref()).is_err()
        );
    }

    #[test]
    fn conflicting_variables_are_named_and_the_first_counts() {
        let with = |value: &str| Provided {
            envs: BTreeMap::from([("A".to_owned(), value.to_owned()), (format!("A_{value}"), value.to_owned())]),
            ..Provided::default()
        };
        let mut merged = Provided::default();
        merged.merge("a/x", &with("1"));
        merged.merge("a/y", &with("2"));
        assert_eq!(
            merged.envs.into_iter().collect::<Vec<_>>(),
            [("A".to_owned(), "1".to_owned()), ("A_1".to_owned(), "1".to_owned()), ("A_2".to_owned(), "2".to_owned())]
        );
        assert_eq!(merged.conflicts, ["A (of a/y)"]);
    }
}
