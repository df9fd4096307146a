//! A thousand random events in the life of pods, plugins and node.

use super::{Plugin, device};
use akri_krustlet_devices::{AllocationError, Amount, ContainerRequest, Devices, DevicesConfig, PodRequest};
use akri_krustlet_host::DirectoryWatcher;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub const EVENTS: usize = 1000;
const RESOURCES: [&str; 3] = ["a/x", "a/y", "a/z"];

/// As good as a test needs it (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

fn request(uid: &str, counts: &[(&str, usize)]) -> PodRequest {
    let resources: BTreeMap<_, _> =
        counts.iter().map(|(resource, count)| ((*resource).to_owned(), *count as u64)).collect();
    let containers = ["first", "second"].map(|name| ContainerRequest {
        name: name.to_owned(),
        init: false,
        resources: resources.clone(),
    });
    PodRequest { uid: uid.to_owned(), namespace: "n".to_owned(), name: uid.to_owned(), containers: containers.into() }
}

/// The ids that a pod's containers were given, by their environment.
fn given(devices: &Devices, uid: &str, resource: &str) -> Vec<String> {
    let name = format!("DEVICE_{}", resource.rsplit('/').next().unwrap());
    let containers = ["first", "second"].into_iter();
    let ids = containers.filter_map(|container| devices.provided(uid, container).envs.remove(&name));
    ids.flat_map(|ids| ids.split(',').map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Requests that were granted, and those that were not.
    pub allocated: usize,
    pub refused: usize,
    /// Devices that two had at a time.
    pub twice: usize,
    /// Devices that nobody had in the end and nobody could have.
    pub lost: usize,
}

pub async fn run(seed: u64) -> Outcome {
    let mut random = Random(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut config = DevicesConfig::new(directory.path().join("plugins"), directory.path().join("devices.json"));
    config.patience = Duration::ZERO;
    config.notice = Duration::ZERO;
    let watcher = DirectoryWatcher::start().unwrap();
    let mut devices: Arc<Devices> = Devices::start(config.clone(), &watcher).await.unwrap();
    let mut plugins = Vec::new();
    for resource in RESOURCES {
        plugins.push(Plugin::start(&config.plugins_directory, resource, &["0", "1", "2", "3"]).await);
    }
    let mut pods: BTreeSet<String> = BTreeSet::new();
    let mut outcome = Outcome { allocated: 0, refused: 0, twice: 0, lost: 0 };
    for event in 0..EVENTS {
        match random.below(100) {
            0..45 => {
                let counts: Vec<_> = RESOURCES.iter().map(|resource| (*resource, random.below(3))).collect();
                // Now and then a pod that is there already.
                let uid = match pods.iter().nth(random.below(pods.len() * 4 + 1)) {
                    Some(known) => known.clone(),
                    None => format!("pod{event}"),
                };
                match devices.allocate(&request(&uid, &counts)).await {
                    Ok(()) => {
                        outcome.allocated += 1;
                        pods.insert(uid.clone());
                        for (resource, count) in counts {
                            assert_eq!(given(&devices, &uid, resource).len(), 2 * count, "all that was asked for");
                        }
                    }
                    Err(_) => {
                        outcome.refused += 1;
                        if !pods.contains(&uid) {
                            assert!(RESOURCES.iter().all(|resource| given(&devices, &uid, resource).is_empty()));
                        }
                    }
                }
            }
            45..80 => {
                if let Some(uid) = pods.iter().nth(random.below(pods.len().max(1))).cloned() {
                    devices.release(&uid);
                    pods.remove(&uid);
                }
            }
            80..92 => {
                let list = (0..random.below(8)).map(|id| device(&id.to_string(), random.below(4) > 0));
                let list: Vec<_> = list.collect();
                plugins[random.below(3)].set(list);
            }
            92..96 => plugins[random.below(3)].register().await.unwrap(),
            96..98 => {
                let which = random.below(3);
                let resource = plugins.remove(which).resource.clone();
                let plugin = Plugin::start(&config.plugins_directory, &resource, &["0", "1", "2", "3"]).await;
                plugins.insert(which, plugin);
            }
            _ => {
                drop(devices);
                // Its sockets are let go by tasks that may still be ending.
                devices = loop {
                    match Devices::start(config.clone(), &watcher).await {
                        Err(error) if error.is_taken() => tokio::time::sleep(Duration::from_millis(5)).await,
                        started => break started.unwrap(),
                    }
                };
                devices.retain(|uid| pods.contains(uid));
            }
        }
        for resource in RESOURCES {
            let all: Vec<_> = pods.iter().flat_map(|uid| given(&devices, uid, resource)).collect();
            let different: BTreeSet<_> = all.iter().collect();
            if different.len() != all.len() {
                println!("given twice after event {event}: {resource} {all:?}");
                outcome.twice += all.len() - different.len();
            }
        }
    }
    for uid in &pods {
        devices.release(uid);
    }
    // All that there is can be had by one pod. No list before had as many.
    for plugin in &plugins {
        plugin.set((0..10).map(|id| device(&id.to_string(), true)).collect());
        let mut amounts = devices.amounts();
        let has_ten = |amount: &Amount| amount.allocatable == 10;
        let told =
            amounts.wait_for(|amounts| amounts.get(&plugin.resource).copied().flatten().as_ref().is_some_and(has_ten));
        tokio::time::timeout(Duration::from_secs(30), told).await.unwrap().unwrap();
    }
    for resource in RESOURCES {
        match devices.allocate(&request(resource, &[(resource, 5)])).await {
            Ok(()) => {}
            Err(AllocationError::TooFew { free, all, .. }) => outcome.lost += all - free,
            Err(error) => panic!("{error}"),
        }
    }
    outcome
}
