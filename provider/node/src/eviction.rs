//! What becomes of pods when the machine is short of something, as on a kubelet.
//!
//! # Rules
//! - A shortage is told in the Node's conditions from when it is seen until it has not been for the transition period.
//! - Every 10 s, while it lasts and until the minimum is reclaimed besides, one pod is ended: of those that take more than they
//!   asked for (then of the others) the one of the lowest priority, of those the one that takes most beyond that. For space,
//!   images that nobody runs go first.
//! - While it is told, no pod is taken that would be the next to go.
//! - Processes: told, and no pod is ended for it; guests have none.

use crate::cluster::machine::{Least, Pressure, Shortage, Thresholds};
use crate::manifest::static_pod::is_static;
use crate::placement::Rejection;
use crate::pod::PodObject;
use crate::status;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pods of this priority and higher keep a cluster going, and are not evicted.
pub const CRITICAL: i32 = 2_000_000_000;

/// When pods are evicted.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionSettings {
    /// What must be left.
    pub thresholds: Thresholds,
    /// What must be left besides, once it was too little.
    pub minimum_reclaim: Reclaim,
    /// How long a shortage is told after it was seen last.
    pub transition_period: Duration,
}

impl Default for EvictionSettings {
    fn default() -> Self {
        Self {
            thresholds: Thresholds::default(),
            minimum_reclaim: Reclaim::default(),
            transition_period: Duration::from_secs(300),
        }
    }
}

/// Amounts by which more than the threshold must be left before evictions end; none by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reclaim(Vec<(String, Least)>);

impl std::str::FromStr for Reclaim {
    type Err = String;

    /// `SIGNAL=AMOUNT,...` as a kubelet's `--eviction-minimum-reclaim` has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut amounts = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (signal, amount) =
                part.split_once('=').ok_or_else(|| format!("{part}: expected SIGNAL=AMOUNT or SIGNAL=PERCENT%"))?;
            if !["memory.available", "nodefs.available", "nodefs.inodesFree"].contains(&signal) {
                return Err(format!("{signal}: expected memory.available, nodefs.available or nodefs.inodesFree"));
            }
            amounts.push((signal.to_owned(), amount.parse().map_err(|error| format!("{part}: {error}"))?));
        }
        Ok(Self(amounts))
    }
}

impl Reclaim {
    fn of(&self, signal: &str) -> Option<Least> {
        self.0.iter().find(|(known, _)| known == signal).map(|(_, amount)| *amount)
    }
}

/// What is scarce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Space or inodes of the data directory's filesystem.
    Storage,
}

impl Resource {
    /// As Kubernetes names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Storage => "ephemeral-storage",
        }
    }

    /// A kubelet's signal that says how much is left of it.
    pub fn signal(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::Storage => "nodefs.available",
        }
    }
}

/// Looks at the machine, for whoever tells of it and for whoever acts.
#[derive(Debug)]
pub struct PressureWatch {
    data: PathBuf,
    settings: EvictionSettings,
    seen: Mutex<Seen>,
    conditions: watch::Sender<Pressure>,
}

#[derive(Debug, Default)]
struct Seen {
    memory: Signal,
    space: Signal,
    inodes: Signal,
    pid: Signal,
}

/// A shortage as it was seen.
#[derive(Debug, Default)]
struct Signal {
    /// When it was seen last, and how it was then.
    last: Option<(Instant, String)>,
    /// Not enough has been reclaimed since.
    is_acute: bool,
}

impl Signal {
    fn see(&mut self, shortage: Option<Shortage>, reclaim: impl Fn(&str) -> Option<Least>, now: Instant) {
        let is_met = shortage.as_ref().is_some_and(|shortage| shortage.is_met(None));
        let is_left = |shortage: &Shortage| shortage.is_met(reclaim(shortage.signal));
        self.is_acute = is_met || (self.is_acute && shortage.as_ref().is_some_and(is_left));
        if let Some(shortage) = shortage.filter(|_| is_met) {
            self.last = Some((now, shortage.message()));
        }
    }

    fn told(&self, transition: Duration, now: Instant) -> Option<String> {
        let (at, message) = self.last.as_ref()?;
        (self.is_acute || now.duration_since(*at) < transition).then(|| message.clone())
    }
}

impl PressureWatch {
    /// Of this machine, and the filesystem of `data`; looks at it.
    pub fn new(data: PathBuf, settings: EvictionSettings) -> Self {
        let watch = Self { data, settings, seen: Mutex::default(), conditions: watch::Sender::default() };
        watch.look();
        watch
    }

    /// The shortages that the Node's conditions tell.
    pub fn conditions(&self) -> watch::Receiver<Pressure> {
        self.conditions.subscribe()
    }

    /// Looks at the machine; what pods have to go for now, and how it is.
    pub fn look(&self) -> Option<(Resource, String)> {
        let shortages = Shortage::read(&self.data, &self.settings.thresholds);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, reclaim) = (Instant::now(), |signal: &str| self.settings.minimum_reclaim.of(signal));
        seen.memory.see(shortages.memory, reclaim, now);
        seen.space.see(shortages.space, reclaim, now);
        seen.inodes.see(shortages.inodes, reclaim, now);
        seen.pid.see(shortages.pid, reclaim, now);
        let told = |signal: &Signal| signal.told(self.settings.transition_period, now);
        let disk = told(&seen.space).or_else(|| told(&seen.inodes));
        let pressure = Pressure { memory: told(&seen.memory), disk, pid: told(&seen.pid) };
        self.conditions.send_if_modified(|known| {
            let differs = *known != pressure;
            *known = pressure;
            differs
        });
        let acute = |signal: &Signal, resource| {
            let (_, message) = signal.last.as_ref().filter(|_| signal.is_acute)?;
            Some((resource, message.clone()))
        };
        acute(&seen.memory, Resource::Memory)
            .or_else(|| acute(&seen.space, Resource::Storage))
            .or_else(|| acute(&seen.inodes, Resource::Storage))
    }
}

/// A pod's priority. Static pods are what keeps a node going.
pub fn priority(pod: &PodObject) -> i32 {
    match pod.folder.is_some() && is_static(&pod.api) {
        true => CRITICAL,
        false => pod.spec().priority.unwrap_or(0),
    }
}

/// Whether a pod is taken while this is told.
pub fn admit(pod: &PodObject, pressure: &Pressure) -> Result<(), Rejection> {
    let conditions = [("MemoryPressure", &pressure.memory), ("DiskPressure", &pressure.disk)];
    let told: Vec<_> = conditions.iter().filter(|(_, message)| message.is_some()).map(|(name, _)| *name).collect();
    if told.is_empty() || priority(pod) >= CRITICAL {
        return Ok(());
    }
    let tolerates_memory = pod.spec().tolerations.iter().flatten().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let is_for_all = key.is_empty() && toleration.operator.as_deref() == Some("Exists");
        is_for_all || key == "node.kubernetes.io/memory-pressure"
    });
    if told == ["MemoryPressure"] && (status::qos_class(pod) != "BestEffort" || tolerates_memory) {
        return Ok(());
    }
    Err(Rejection { reason: "Evicted".to_owned(), message: format!("The node had condition: [{}]. ", told.join(" ")) })
}

/// What decides which pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The pod.
    pub uid: String,
    /// Its priority.
    pub priority: i32,
    /// What it takes, in bytes.
    pub used: u64,
    /// What it asked for, in bytes.
    pub requested: u64,
}

/// The pod that goes first.
pub fn first(candidates: impl IntoIterator<Item = Candidate>) -> Option<Candidate> {
    candidates.into_iter().filter(|candidate| candidate.priority < CRITICAL).min_by_key(|candidate| {
        let beyond = i128::from(candidate.used) - i128::from(candidate.requested);
        (beyond <= 0, candidate.priority, std::cmp::Reverse(beyond), candidate.uid.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn candidate(uid: &str, priority: i32, used: u64, requested: u64) -> Candidate {
        Candidate { uid: uid.to_owned(), priority, used, requested }
    }

    #[test]
    fn pods_go_in_a_kubelets_order() {
        let mut left = vec![
            candidate("frugal", 0, 10, 100),
            candidate("frugal-and-unimportant", -5, 10, 100),
            candidate("greedy-but-important", 1000, 900, 100),
            candidate("greedier", 0, 500, 100),
            candidate("greedy", 0, 300, 100),
            candidate("critical", CRITICAL, 5000, 0),
        ];
        let mut order = Vec::new();
        while let Some(next) = first(left.clone()) {
            left.retain(|candidate| *candidate != next);
            order.push(next.uid);
        }
        let expected = ["greedier", "greedy", "greedy-but-important", "frugal-and-unimportant", "frugal"];
        assert_eq!(order, expected);
    }

    fn pod(spec: Value) -> PodObject {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
        PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None }
    }

    #[test]
    fn under_pressure_only_pods_come_that_would_not_be_the_next_to_go() {
        let short = |memory: bool, disk: bool| Pressure {
            memory: memory.then(String::new),
            disk: disk.then(String::new),
            pid: Some(String::new()),
        };
        let container = json!([{"name": "c"}]);
        let best_effort = pod(json!({"containers": container}));
        let tolerant = pod(json!({"containers": container,
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}));
        let burstable = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}));
        let critical = pod(json!({"containers": container, "priority": CRITICAL}));
        assert!([&best_effort, &burstable].iter().all(|pod| admit(pod, &short(false, false)).is_ok()));
        let refused = admit(&best_effort, &short(true, false)).unwrap_err();
        assert_eq!(
            (refused.reason.as_str(), refused.message.as_str()),
            ("Evicted", "The node had condition: [MemoryPressure]. ")
        );
        assert!([&tolerant, &burstable, &critical].iter().all(|pod| admit(pod, &short(true, false)).is_ok()));
        assert!([&tolerant, &burstable].iter().all(|pod| admit(pod, &short(true, true)).is_err()));
        assert!(admit(&burstable, &short(false, true)).is_err() && admit(&critical, &short(true, true)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shortage_lasts_until_enough_is_reclaimed_and_is_told_for_a_while_after() {
        let transition = Duration::from_secs(300);
        let reclaim: Reclaim = "memory.available=50".parse().unwrap();
        let mut signal = Signal::default();
        let mut see = |left: u64| {
            let shortage = Shortage {
                signal: "memory.available",
                what: "of memory",
                least: Least::Amount(100.0),
                left,
                all: 1000,
            };
            signal.see(Some(shortage), |name| reclaim.of(name), Instant::now());
            (signal.is_acute, signal.told(transition, Instant::now()).is_some())
        };
        assert_eq!(see(100), (false, false));
        assert_eq!(see(99), (true, true));
        assert_eq!(see(149), (true, true), "not enough is reclaimed");
        assert_eq!(see(150), (false, true), "it is told for a while");
        tokio::time::advance(transition).await;
        assert_eq!(see(120), (false, false));
        assert!("memory.available<5".parse::<Reclaim>().is_err() && "pid.available=5".parse::<Reclaim>().is_err());
    }
}
