//! Devices of real plugins on real sockets, without a node around them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod plugin;

use akri_krustlet_devices::{
    AllocationError, Amount, ContainerRequest, Devices, DevicesConfig, DevicesError, PodRequest,
};
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_host::socket::connect;
use akri_proto::v1::pod_resources_lister_client::PodResourcesListerClient;
use akri_proto::v1::{AllocatableResourcesRequest, GetPodResourcesRequest, ListPodResourcesRequest, PodResources};
use akri_proto::v1beta1::DevicePluginOptions;
use plugin::{Answer, Plugin, device, register};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// Fails a test that waits for something that does not happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// The directories of a node, over its lives.
struct Place {
    directory: tempfile::TempDir,
    config: DevicesConfig,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config =
            DevicesConfig::new(directory.path().join("device-plugins"), directory.path().join("data/devices.json"));
        std::fs::create_dir(directory.path().join("data")).unwrap();
        config.timeouts.answer = Duration::from_millis(500);
        config.timeouts.allocate = Duration::from_millis(500);
        config.timeouts.pre_start = Duration::from_millis(500);
        config.patience = Duration::ZERO;
        config.notice = Duration::ZERO;
        Self { directory, config }
    }

    async fn start(&self) -> Arc<Devices> {
        Devices::start(self.config.clone(), &DirectoryWatcher::start().unwrap()).await.unwrap()
    }

    fn plugins(&self) -> PathBuf {
        self.config.plugins_directory.clone()
    }
}

fn pod(uid: &str, resources: &[(&str, u64)]) -> PodRequest {
    let resources = resources.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    PodRequest {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: format!("pod-{uid}"),
        containers: vec![ContainerRequest { name: "main".to_owned(), init: false, resources }],
    }
}

async fn wait_for_amount(devices: &Devices, resource: &str, expected: Option<(usize, usize)>) {
    let expected = expected.map(|(capacity, allocatable)| Amount { capacity, allocatable });
    let mut amounts = devices.amounts();
    let reached = amounts.wait_for(|amounts| amounts.get(resource).copied().flatten() == expected);
    let reached = tokio::time::timeout(DEADLINE, reached).await.map(|reached| reached.is_ok());
    assert_eq!(reached, Ok(true), "{expected:?}: {:?}", devices.amounts().borrow());
}

fn ids_of(devices: &Devices, uid: &str) -> String {
    devices.provided(uid, "main").envs.get("DEVICE").cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_registration_that_makes_no_sense_is_refused_in_words() {
    let place = Place::new();
    let _devices = place.start().await;
    let options = DevicePluginOptions::default();
    for (version, endpoint, resource, expected) in [
        ("v1alpha1", "a.sock", "a/b", "v1beta1"),
        ("v1beta1", "../a.sock", "a/b", "endpoint"),
        ("v1beta1", "kubelet.sock", "a/b", "endpoint"),
        ("v1beta1", "", "a/b", "endpoint"),
        ("v1beta1", "a.sock", "cpu", "DOMAIN/NAME"),
        ("v1beta1", "a.sock", "kubernetes.io/b", "DOMAIN/NAME"),
    ] {
        let refused = register(&place.plugins(), version, endpoint, resource, options).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(expected), "{refused}");
    }
}

#[tokio::test]
async fn lists_are_followed_and_the_last_device_can_be_had() {
    let place = Place::new();
    let devices = place.start().await;
    let plugin = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    devices.allocate(&pod("u1", &[("a/x", 1)])).await.unwrap();
    assert_eq!(ids_of(&devices, "u1"), "1");
    let refused = devices.allocate(&pod("u2", &[("a/x", 1)])).await.unwrap_err();
    assert!(matches!(refused, AllocationError::TooFew { free: 0, all: 1, .. }), "{refused}");
    plugin.set(vec![device("1", true), device("2", false), device("3", true)]);
    wait_for_amount(&devices, "a/x", Some((3, 2))).await;
    devices.allocate(&pod("u2", &[("a/x", 1)])).await.unwrap();
    assert_eq!(ids_of(&devices, "u2"), "3", "an unhealthy device is not given");
    devices.release("u1");
    devices.allocate(&pod("u3", &[("a/x", 1)])).await.unwrap();
    assert_eq!(ids_of(&devices, "u3"), "1");
    // A device that goes while it is used is not taken from its pod, and not given again.
    plugin.set(vec![device("3", true)]);
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    assert_eq!(ids_of(&devices, "u3"), "1");
    devices.release("u3");
    assert!(devices.allocate(&pod("u4", &[("a/x", 1)])).await.is_err());
    let unknown = devices.allocate(&pod("u5", &[("a/nothing", 1)])).await.unwrap_err().to_string();
    assert!(unknown.contains("a/nothing, which no device plugin offers"), "{unknown}");
}

#[tokio::test]
async fn a_pod_waits_for_a_moment_for_a_device_that_is_about_to_be_free() {
    let mut place = Place::new();
    place.config.patience = DEADLINE;
    let devices = place.start().await;
    let wait = |uid: &'static str| {
        let devices = devices.clone();
        tokio::spawn(async move { devices.allocate(&pod(uid, &[("a/x", 1)])).await })
    };
    // For its plugin,
    let first = wait("u1");
    let _plugin = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    first.await.unwrap().unwrap();
    // and for the pod before it, which is ending.
    let second = wait("u2");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!second.is_finished());
    devices.release("u1");
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_plugin_that_has_not_noticed_that_its_device_is_free_is_asked_again() {
    let mut place = Place::new();
    place.config.notice = DEADLINE;
    let devices = place.start().await;
    let plugin = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    devices.allocate(&pod("u1", &[("a/x", 1)])).await.unwrap();
    assert_eq!(listed(&place).await, ["pod-u1"]);
    devices.release("u1");
    plugin.set_answer(Answer::Fail);
    let waiting = {
        let devices = devices.clone();
        tokio::spawn(async move { devices.allocate(&pod("u2", &[("a/x", 1)])).await })
    };
    let asked = async {
        while plugin.allocated().len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.unwrap();
    // While it waits, it is not told to have the device, or the plugin would never notice.
    assert!(listed(&place).await.is_empty());
    assert!(matches!(devices.allocate(&pod("u3", &[("a/x", 1)])).await, Err(AllocationError::TooFew { .. })));
    plugin.set_answer(Answer::Normal);
    waiting.await.unwrap().unwrap();
    assert_eq!(listed(&place).await, ["pod-u2"]);
    // A device that was used by nobody is refused for another reason.
    plugin.set(vec![device("1", true), device("2", true)]);
    wait_for_amount(&devices, "a/x", Some((2, 2))).await;
    plugin.set_answer(Answer::Fail);
    let refused = devices.allocate(&pod("u3", &[("a/x", 1)])).await.unwrap_err();
    assert!(matches!(refused, AllocationError::Plugin { .. }), "{refused}");
}

/// The pods that the pod resources interface tells to have devices.
async fn listed(place: &Place) -> Vec<String> {
    let socket = place.config.pod_resources_socket.clone().unwrap();
    let mut client = PodResourcesListerClient::new(connect(socket).await.unwrap());
    let list = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner();
    let with_devices = |pod: &PodResources| pod.containers.iter().any(|container| !container.devices.is_empty());
    list.pod_resources.into_iter().filter(with_devices).map(|pod| pod.name).collect()
}

#[tokio::test]
async fn a_pod_has_all_of_its_devices_or_none() {
    let place = Place::new();
    let devices = place.start().await;
    let x = Plugin::start(&place.plugins(), "a/x", &["1", "2"]).await;
    let y = Plugin::start(&place.plugins(), "a/y", &["7"]).await;
    wait_for_amount(&devices, "a/x", Some((2, 2))).await;
    wait_for_amount(&devices, "a/y", Some((1, 1))).await;
    assert!(devices.allocate(&pod("u1", &[("a/x", 2), ("a/y", 2)])).await.is_err());
    assert!(x.allocated().is_empty(), "nobody is asked before all is there");
    y.set_answer(Answer::Fail);
    let failed = devices.allocate(&pod("u1", &[("a/x", 2), ("a/y", 1)])).await.unwrap_err().to_string();
    assert!(failed.contains("a/y: Allocate: ") && failed.contains("out of order"), "{failed}");
    for (answer, expected) in [
        (Answer::Hang, "no answer within 500ms"),
        (Answer::Nonsense, "\"A=B\" cannot be an environment variable"),
        (Answer::Nothing, "0 answers"),
    ] {
        y.set_answer(answer);
        let failed = devices.allocate(&pod("u1", &[("a/y", 1)])).await.unwrap_err().to_string();
        assert!(failed.contains(expected), "{failed}");
    }
    y.set_answer(Answer::Normal);
    devices.allocate(&pod("u2", &[("a/x", 2), ("a/y", 1)])).await.unwrap();
    let provided = devices.provided("u2", "main");
    assert_eq!((provided.envs["DEVICE_x"].as_str(), provided.envs["DEVICE_y"].as_str()), ("1,2", "7"));
    assert_eq!(provided.conflicts, ["DEVICE (of a/y)"]);
    // A plugin that does not answer keeps nobody else.
    devices.release("u2");
    y.set_answer(Answer::Hang);
    let hanging = tokio::spawn({
        let devices = devices.clone();
        async move { devices.allocate(&pod("u3", &[("a/y", 1)])).await }
    });
    devices.allocate(&pod("u4", &[("a/x", 1)])).await.unwrap();
    assert!(!hanging.is_finished());
    assert!(hanging.await.unwrap().is_err());
}

#[tokio::test]
async fn one_answer_for_each_device_is_understood_and_preferences_and_starts_are_asked_for() {
    let place = Place::new();
    let devices = place.start().await;
    let plugin = Plugin::serve(&place.plugins(), "a/x", &["1", "2", "3"]);
    plugin.set_options(true, true);
    plugin.register().await.unwrap();
    wait_for_amount(&devices, "a/x", Some((3, 3))).await;
    plugin.set_answer(Answer::PerDevice);
    devices.allocate(&pod("u1", &[("a/x", 2)])).await.unwrap();
    assert_eq!(plugin.allocated(), [["2", "3"]], "the plugin prefers the last ones");
    assert_eq!(devices.provided("u1", "main").envs["DEVICE"], "2", "of the devices' different values the first counts");
    devices.pre_start("u1", "main").await.unwrap();
    devices.pre_start("u1", "main").await.unwrap();
    assert_eq!(plugin.started(), [["2", "3"], ["2", "3"]], "before each start");
}

#[tokio::test]
async fn a_new_life_of_the_node_knows_who_has_what_and_goes_to_the_plugins() {
    let place = Place::new();
    let devices = place.start().await;
    let plugin = Plugin::start(&place.plugins(), "a/x", &["1", "2"]).await;
    wait_for_amount(&devices, "a/x", Some((2, 2))).await;
    devices.allocate(&pod("u1", &[("a/x", 1)])).await.unwrap();
    devices.allocate(&pod("gone", &[("a/x", 1)])).await.unwrap();
    drop(devices);
    // Nobody registers again.
    let devices = place.start().await;
    wait_for_amount(&devices, "a/x", Some((2, 2))).await;
    devices.allocate(&pod("u1", &[("a/x", 1)])).await.unwrap();
    assert_eq!((ids_of(&devices, "u1").as_str(), plugin.allocated().len()), ("1", 2), "it is not asked again");
    assert!(devices.allocate(&pod("u2", &[("a/x", 1)])).await.is_err(), "both are in use");
    devices.retain(|uid| uid == "u1");
    devices.allocate(&pod("u2", &[("a/x", 1)])).await.unwrap();
    assert_eq!(ids_of(&devices, "u2"), "2");
    // A record that is damaged is set aside, not overwritten.
    drop(devices);
    std::fs::write(&place.config.checkpoint, "{\"pods\":").unwrap();
    let devices = place.start().await;
    assert!(place.directory.path().join("data/devices.broken").exists());
    plugin.register().await.unwrap();
    wait_for_amount(&devices, "a/x", Some((2, 2))).await;
}

#[tokio::test]
async fn a_plugin_that_goes_takes_its_resource_along_in_time() {
    let mut place = Place::new();
    place.config.grace_period = Duration::from_millis(400);
    let devices = place.start().await;
    let plugin = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    let mut amounts = devices.amounts();
    drop(plugin);
    let mut seen = Vec::new();
    while seen.last() != Some(&None) {
        tokio::time::timeout(DEADLINE, amounts.changed()).await.unwrap().unwrap();
        seen.push(amounts.borrow_and_update()["a/x"].map(|amount| (amount.capacity, amount.allocatable)));
    }
    assert_eq!(seen, [Some((1, 0)), Some((0, 0)), None]);
    devices.removal_is_told(&["a/x".to_owned()]);
    assert!(devices.amounts().borrow().is_empty());
    assert!(!std::fs::read_to_string(&place.config.checkpoint).unwrap().contains("a/x"));
    // It may come back, and in time nothing of it is lost.
    let plugin = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    drop(plugin);
    wait_for_amount(&devices, "a/x", Some((1, 0))).await;
    let _again = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    tokio::time::sleep(place.config.grace_period * 3).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
}

#[tokio::test]
async fn a_burst_of_registrations_is_absorbed_and_a_repeated_one_replaces() {
    let place = Place::new();
    let devices = place.start().await;
    let mut plugins = Vec::new();
    for number in 0..200 {
        plugins.push(Plugin::serve(&place.plugins(), &format!("a/x{number}"), &["1"]));
    }
    let registered = plugins.iter().map(|plugin| async { plugin.register().await.unwrap() });
    let registered: Vec<_> = registered.collect();
    for registration in registered {
        registration.await;
    }
    for number in 0..200 {
        wait_for_amount(&devices, &format!("a/x{number}"), Some((1, 1))).await;
    }
    plugins[0].register().await.unwrap();
    wait_for_amount(&devices, "a/x0", Some((1, 1))).await;
    for number in 0..100 {
        plugins[0].set((0..=number).map(|id| device(&id.to_string(), true)).collect());
    }
    wait_for_amount(&devices, "a/x0", Some((100, 100))).await;
}

#[tokio::test]
async fn a_plugin_that_floods_hurts_nobody_else() {
    let place = Place::new();
    let devices = place.start().await;
    let hostile = Plugin::start(&place.plugins(), "a/hostile", &["1"]).await;
    let other = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/hostile", Some((1, 1))).await;
    // As many devices as a message takes are taken.
    hostile.set((0..100_000).map(|id| device(&id.to_string(), true)).collect());
    wait_for_amount(&devices, "a/hostile", Some((100_000, 100_000))).await;
    // 8 MB: more than a message may have. The plugin is gone, and is tried again with pauses.
    hostile.set((0..80).map(|id| device(&format!("{id}{}", "x".repeat(100_000)), true)).collect());
    wait_for_amount(&devices, "a/hostile", Some((100_000, 0))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(hostile.lists() <= 6, "{} connections within a second", hostile.lists());
    other.set(vec![device("1", true), device("2", true)]);
    wait_for_amount(&devices, "a/x", Some((2, 2))).await;
    devices.allocate(&pod("u1", &[("a/x", 2)])).await.unwrap();
}

#[tokio::test]
async fn sockets_that_somebody_removes_are_made_again_and_those_of_others_are_left_alone() {
    let place = Place::new();
    let devices = place.start().await;
    let socket = devices.registration_socket();
    std::fs::remove_file(&socket).unwrap();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !socket.exists() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _plugin = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    // Another node, or a kubelet, on the same directory.
    let refused = Devices::start(place.config.clone(), &DirectoryWatcher::start().unwrap()).await.unwrap_err();
    assert!(refused.is_taken(), "{refused}");
    assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
    register(&place.plugins(), "v1beta1", "x.sock", "a/x", DevicePluginOptions::default()).await.unwrap();
    assert!(matches!(refused, DevicesError::Socket(_)));
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_given() {
    let place = Place::new();
    let devices = place.start().await;
    let _plugin = Plugin::start(&place.plugins(), "a/x", &["1"]).await;
    wait_for_amount(&devices, "a/x", Some((1, 1))).await;
    let data = place.directory.path().join("data");
    std::fs::rename(&data, place.directory.path().join("away")).unwrap();
    let refused = devices.allocate(&pod("u1", &[("a/x", 1)])).await.unwrap_err().to_string();
    assert!(refused.contains("devices.json"), "{refused}");
    std::fs::rename(place.directory.path().join("away"), &data).unwrap();
    devices.allocate(&pod("u2", &[("a/x", 1)])).await.unwrap();
}

#[tokio::test]
async fn the_pod_resources_interface_tells_who_has_what() {
    let place = Place::new();
    let devices = place.start().await;
    let plugin = Plugin::start(&place.plugins(), "a/x", &["1", "2"]).await;
    wait_for_amount(&devices, "a/x", Some((2, 2))).await;
    let socket = place.config.pod_resources_socket.clone().unwrap();
    let mut client = PodResourcesListerClient::new(connect(socket).await.unwrap());
    // Listed from Allocate on, before the plugin has answered: a slow start must not look like an end.
    plugin.set_answer(Answer::Hang);
    let slow = tokio::spawn({
        let devices = devices.clone();
        async move { devices.allocate(&pod("u1", &[("a/x", 1)])).await }
    });
    while plugin.allocated().is_empty() {
        tokio::task::yield_now().await;
    }
    let list = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources;
    assert_eq!(list[0].containers[0].devices[0].device_ids, ["1"]);
    assert!(slow.await.unwrap().is_err());
    plugin.set_answer(Answer::Normal);
    devices.allocate(&pod("u2", &[("a/x", 2)])).await.unwrap();
    let list = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources;
    let listed: BTreeMap<_, Vec<_>> = list
        .iter()
        .map(|pod| {
            let devices = pod.containers.iter().flat_map(|container| &container.devices);
            let devices = devices.map(|devices| (devices.resource_name.as_str(), devices.device_ids.join(",")));
            (format!("{}/{}", pod.namespace, pod.name), devices.collect())
        })
        .collect();
    let expected = vec![("a/x", "1".to_owned()), ("a/x", "2".to_owned())];
    assert_eq!(listed, BTreeMap::from([("default/pod-u2".to_owned(), expected)]));
    let get = |name: &str| GetPodResourcesRequest { pod_name: name.to_owned(), pod_namespace: "default".to_owned() };
    assert!(client.get(get("pod-u2")).await.unwrap().into_inner().pod_resources.is_some());
    assert_eq!(client.get(get("pod-u1")).await.unwrap_err().code(), Code::NotFound);
    let all = client.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!(all.devices.len(), 2);
    devices.release("u2");
    assert!(client.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources.is_empty());
}
