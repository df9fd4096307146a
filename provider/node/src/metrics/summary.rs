//! `/stats/summary`: the kubelet's JSON.

use super::container::{self, ContainerSample, PodSample};
use super::machine;
use crate::services::Services;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Summaries that follow one another faster than this have the same rates.
const RATES: Duration = Duration::from_secs(1);

/// What an earlier summary was made of: CPU times by pod's UID and container, of the machine by an empty name.
#[derive(Debug)]
pub(super) struct Before {
    at: Instant,
    cpu: HashMap<(String, String), Duration>,
    rates: HashMap<(String, String), u64>,
}

fn timestamp(seconds: f64) -> Value {
    // Whole seconds are in range for as long as machines last.
    jiff::Timestamp::from_second(seconds as i64).map_or(Value::Null, |time| json!(time.to_string()))
}

fn rfc3339_now() -> Value {
    json!(jiff::Timestamp::now().to_string())
}

pub(super) fn summary(services: &Services, before: &mut Option<Before>, started: f64) -> Value {
    let samples = container::samples(services);
    let machine_cpu = machine::cpu();
    let key = |sample: &ContainerSample| (sample.uid.clone(), sample.name.clone());
    let containers = samples.iter().flat_map(|pod| &pod.containers);
    let mut cpu: HashMap<_, _> = containers.map(|sample| (key(sample), sample.cpu)).collect();
    cpu.insert(Default::default(), machine_cpu);
    let rates = rates(before, cpu);
    let rate = |uid: &str, name: &str| rates.get(&(uid.to_owned(), name.to_owned())).copied();
    let (all, left) = machine::memory();
    let time = rfc3339_now();
    let usage = |cpu: Duration, rate: Option<u64>| json!({"time": time, "usageNanoCores": rate.unwrap_or_default(), "usageCoreNanoSeconds": nanoseconds(cpu)});
    let pods: Vec<_> = samples
        .iter()
        .map(|pod @ PodSample { taken, containers }| {
            let first = &containers[0];
            let of_container = |sample: &ContainerSample| {
                json!({
                    "name": sample.name, "startTime": timestamp(sample.started),
                    "cpu": usage(sample.cpu, rate(&sample.uid, &sample.name)),
                    "memory": memory(sample.memory, Some(sample.limits.memory as u64), &time),
                })
            };
            let rates = containers.iter().filter_map(|sample| rate(&sample.uid, &sample.name)).sum();
            json!({
                "podRef": {"name": first.pod, "namespace": first.namespace, "uid": first.uid},
                "startTime": timestamp(containers.iter().map(|sample| sample.started).fold(f64::MAX, f64::min)),
                "containers": containers.iter().map(of_container).collect::<Vec<_>>(),
                "cpu": usage(taken.cpu, Some(rates)),
                "memory": memory(pod.memory(), None, &time),
                "network": {
                    "time": time, "name": "wasi",
                    "rxBytes": taken.received, "txBytes": taken.sent,
                },
            })
        })
        .collect();
    json!({
        "node": {
            "nodeName": services.node.name, "startTime": timestamp(started),
            "cpu": usage(machine_cpu, rate("", "")),
            "memory": {
                "time": time, "availableBytes": left, "usageBytes": all.saturating_sub(left),
                "workingSetBytes": all.saturating_sub(left),
            },
            "fs": filesystem(services, &time),
        },
        "pods": pods,
    })
}

fn memory(used: u64, limit: Option<u64>, time: &Value) -> Value {
    let mut memory = json!({"time": time, "usageBytes": used, "workingSetBytes": used, "rssBytes": used});
    if let Some(limit) = limit {
        memory["availableBytes"] = json!(limit.saturating_sub(used));
    }
    memory
}

fn filesystem(services: &Services, time: &Value) -> Value {
    let Ok(disk) = rustix::fs::statvfs(services.data.path()) else { return Value::Null };
    let (capacity, available) = (disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize);
    json!({
        "time": time, "availableBytes": available, "capacityBytes": capacity,
        "usedBytes": capacity.saturating_sub(disk.f_bfree * disk.f_frsize),
        "inodesFree": disk.f_favail, "inodes": disk.f_files, "inodesUsed": disk.f_files.saturating_sub(disk.f_ffree),
    })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU time in each second since the summary before, in nanoseconds; nothing in the first one.
fn rates(before: &mut Option<Before>, cpu: HashMap<(String, String), Duration>) -> HashMap<(String, String), u64> {
    let now = Instant::now();
    if let Some(before) = before
        && now.duration_since(before.at) < RATES
    {
        return before.rates.clone();
    }
    let rates = before.as_ref().map_or_else(HashMap::new, |before| {
        let seconds = now.duration_since(before.at).as_secs_f64();
        let rate = |(key, now): (&(String, String), &Duration)| {
            // A container that was started again begins at zero.
            let more = now.checked_sub(*before.cpu.get(key)?)?;
            Some((key.clone(), (more.as_secs_f64() / seconds * 1e9) as u64))
        };
        cpu.iter().filter_map(rate).collect()
    });
    *before = Some(Before { at: now, cpu, rates: rates.clone() });
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_since_the_summary_before() {
        let key = |name: &str| ("uid".to_owned(), name.to_owned());
        let mut before = None;
        assert!(rates(&mut before, HashMap::from([(key("a"), Duration::from_secs(1))])).is_empty());
        let at = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        before.as_mut().unwrap().at = at;
        let now = HashMap::from([(key("a"), Duration::from_secs(2)), (key("new"), Duration::from_secs(5))]);
        let found = rates(&mut before, now);
        assert_eq!(found.len(), 1);
        assert!((90_000_000..=100_000_000).contains(&found[&key("a")]), "{found:?}");
        assert_eq!(rates(&mut before, HashMap::new()), found, "too soon for others");
    }
}
