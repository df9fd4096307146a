//! What a container may use, shared by all of its guests; and what the containers of a pod may use together.

use crate::cpu::CpuShare;
use crate::module::ModuleKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::{ResourceLimiter, ResourcesRequired};

/// Limits of one container, as its pod states them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerLimits {
    /// Linear memory of all guests of the container together, in bytes (`resources.limits.memory`). Default 64 MiB.
    pub memory: usize,
    /// CPU of all guests together, in thousandths of a core (`resources.limits.cpu`). Default: none.
    pub cpu_millis: Option<u32>,
    /// Files that one guest may have open. Default 256.
    pub open_files: usize,
    /// Bytes that one guest may keep in its private directory. Default 16 MiB.
    pub disk: u64,
    /// Files and directories that one guest may make in its private directory. Default 1024.
    pub disk_entries: u64,
}

impl Default for ContainerLimits {
    fn default() -> Self {
        Self { memory: 64 << 20, cpu_millis: None, open_files: 256, disk: 16 << 20, disk_entries: 1024 }
    }
}

/// Bytes of a page of linear memory.
const WASM_PAGE: u64 = 64 << 10;
/// Elements that one table of a guest may have; they count against its container's memory.
pub const TABLE_ELEMENTS: usize = 1_000_000;
/// What an element counts for, in bytes.
const TABLE_ELEMENT: usize = 8;
/// Tables of one guest.
pub const TABLES: usize = 4;
/// Linear memories of one guest.
pub const MEMORIES: usize = 1;
/// Core instances of one component, and tables: each module in it has some, and so have the adapters between them.
const IN_COMPONENT: usize = 16;
/// Linear memories of one component.
const MEMORIES_IN_COMPONENT: usize = 4;
/// Bytes that one host call may take from a guest's memory into the host's. It has no more than its container's limit anyway.
pub const HOSTCALL_BYTES: usize = 64 << 20;
/// File operations that the components of one container have under way at once: a thread each. One that hangs keeps its place.
const FILE_CALLS: usize = 8;
/// Bytes that one `random_get` may ask for.
pub const RANDOM_BYTES: u64 = 8 << 20;

impl ContainerLimits {
    /// The limits as the guests of one container share them.
    pub fn share(self) -> Arc<SharedLimits> {
        self.share_in(None)
    }

    /// The same for a container of a pod whose containers share limits of their own.
    pub fn share_in(self, pod: Option<Arc<PodShare>>) -> Arc<SharedLimits> {
        Arc::new(SharedLimits {
            first: self,
            memory: Memory::new(self.memory),
            pod,
            cpu: CpuShare::new(self.cpu_millis),
            cpu_time: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            file_calls: Arc::new(Semaphore::new(FILE_CALLS)),
        })
    }
}

/// What the containers of one pod may use together, as the pod states it; each has its own limits besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// Linear memory of all guests, in bytes.
    pub memory: Option<usize>,
    /// CPU of all guests, in thousandths of a core.
    pub cpu_millis: Option<u32>,
}

impl PodLimits {
    /// The limits as the containers of one pod share them.
    pub fn share(self) -> Arc<PodShare> {
        let memory = Memory::new(self.memory.unwrap_or(usize::MAX));
        Arc::new(PodShare { memory, cpu: CpuShare::new(self.cpu_millis) })
    }
}

/// The limits of one pod and what its guests have taken of them.
#[derive(Debug)]
pub struct PodShare {
    memory: Memory,
    cpu: CpuShare,
}

impl PodShare {
    /// Other limits from now on. Below what the guests have, nothing is changed, and what they have is the error.
    pub fn resize(&self, limits: PodLimits) -> Result<(), usize> {
        self.memory.resize(limits.memory.unwrap_or(usize::MAX))?;
        self.cpu.set(limits.cpu_millis);
        Ok(())
    }
}

/// Bytes, of which no more are given than the limit that there is at that time.
#[derive(Debug)]
struct Memory {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl Memory {
    fn new(limit: usize) -> Self {
        Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    fn in_use(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn resize(&self, limit: usize) -> Result<(), usize> {
        let in_use = self.in_use();
        if limit < in_use {
            return Err(in_use);
        }
        self.limit.store(limit, Ordering::Relaxed);
        Ok(())
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit());
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What a module or component has from its first instruction on, before it asks for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialSizes {
    /// Linear memories.
    pub memories: u32,
    /// Bytes of the largest of them.
    pub memory: u64,
    /// Tables.
    pub tables: u32,
    /// Elements of the largest of them.
    pub table_elements: u64,
}

impl InitialSizes {
    pub(crate) fn of(resources: &ResourcesRequired) -> Self {
        Self {
            memories: resources.num_memories,
            memory: resources.max_initial_memory_size.unwrap_or_default().saturating_mul(WASM_PAGE),
            tables: resources.num_tables,
            table_elements: resources.max_initial_table_size.unwrap_or_default(),
        }
    }

    /// What of it no guest gets, or none in a container of these limits, in words.
    pub fn beyond(&self, kind: ModuleKind, limits: &ContainerLimits) -> Vec<String> {
        let (memories, tables) = match kind {
            ModuleKind::Module => (MEMORIES, TABLES),
            ModuleKind::Component => (MEMORIES_IN_COMPONENT, IN_COMPONENT),
        };
        let mut beyond = Vec::new();
        if self.memories as usize > memories {
            beyond.push(format!("it has {} linear memories, and a guest may have {memories}", self.memories));
        }
        if self.tables as usize > tables {
            beyond.push(format!("it has {} tables, and a guest may have {tables}", self.tables));
        }
        if self.table_elements > TABLE_ELEMENTS as u64 {
            beyond
                .push(format!("it has a table of {} elements, and one may have {TABLE_ELEMENTS}", self.table_elements));
        }
        if self.memory > limits.memory as u64 {
            beyond.push(format!(
                "it has {} MiB of memory from its start, and its container may have {}: set resources.limits.memory to more than that",
                self.memory.div_ceil(1 << 20),
                limits.memory >> 20
            ));
        }
        beyond
    }
}

/// The limits of one container and what its guests have taken of them.
#[derive(Debug)]
pub struct SharedLimits {
    /// As the container was started; memory and CPU may be others since.
    first: ContainerLimits,
    memory: Memory,
    cpu: CpuShare,
    pod: Option<Arc<PodShare>>,
    /// What its guests have taken in all, in nanoseconds.
    cpu_time: AtomicU64,
    /// What they have sent and received by the network, in bytes.
    sent: AtomicU64,
    received: AtomicU64,
    /// Places of calls on threads that may block, for the container's components.
    file_calls: Arc<Semaphore>,
}

impl SharedLimits {
    pub(crate) fn file_calls(&self) -> &Arc<Semaphore> {
        &self.file_calls
    }

    /// The limits as they are now; of memory no more than the pod's.
    pub fn limits(&self) -> ContainerLimits {
        let of_pod = self.pod.as_ref().map_or(usize::MAX, |pod| pod.memory.limit());
        let memory = self.memory.limit().min(of_pod);
        ContainerLimits { memory, cpu_millis: self.cpu.millis(), ..self.first }
    }

    /// Other limits of memory and CPU from now on, for the guests that run, too. A guest gives nothing back: below what they have, the
    /// limit is not changed, and what they have is the error.
    pub fn resize(&self, memory: usize, cpu_millis: Option<u32>) -> Result<(), usize> {
        self.memory.resize(memory)?;
        self.cpu.set(cpu_millis);
        Ok(())
    }

    /// Bytes of linear memory that the container's guests have now.
    pub fn memory_in_use(&self) -> usize {
        self.memory.in_use()
    }

    /// CPU time that the container's guests have taken, and the host for them.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.cpu_time.load(Ordering::Relaxed))
    }

    /// What the container's guests have sent by the network, in bytes.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// What they have received.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Charges CPU time to the container, and says how long its guests wait until they may have more.
    pub(crate) fn pay(&self, used: Duration) -> Option<Duration> {
        self.cpu_time.fetch_add(u64::try_from(used.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let of_pod = self.pod.as_ref().and_then(|pod| pod.cpu.pay(used));
        self.cpu.pay(used).max(of_pod)
    }

    /// Charges what was spent elsewhere; whoever runs next waits for it.
    pub(crate) fn owe(&self, used: Duration) {
        let _ = self.pay(used);
    }

    fn take_memory(&self, bytes: usize) -> bool {
        if !self.memory.take(bytes) {
            return false;
        }
        let granted = self.pod.as_ref().is_none_or(|pod| pod.memory.take(bytes));
        if !granted {
            self.memory.give_back(bytes);
        }
        granted
    }

    fn give_back_memory(&self, bytes: usize) {
        self.memory.give_back(bytes);
        if let Some(pod) = &self.pod {
            pod.memory.give_back(bytes);
        }
    }
}

/// Counts one guest's memory and tables against its container's limits.
#[derive(Debug)]
pub(crate) struct GuestLimiter {
    container: Arc<SharedLimits>,
    memory: usize,
    refused: AtomicBool,
    is_component: bool,
}

impl GuestLimiter {
    pub(crate) fn new(container: Arc<SharedLimits>) -> Self {
        Self { container, memory: 0, refused: AtomicBool::new(false), is_component: false }
    }

    pub(crate) fn of_component(container: Arc<SharedLimits>) -> Self {
        Self { container, memory: 0, refused: AtomicBool::new(false), is_component: true }
    }

    /// True if the guest's latest wish for memory was refused: if it dies now, it died of that.
    pub(crate) fn memory_was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn container(&self) -> &Arc<SharedLimits> {
        &self.container
    }
}

impl Drop for GuestLimiter {
    fn drop(&mut self) {
        self.container.give_back_memory(self.memory);
    }
}

impl ResourceLimiter for GuestLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current);
        let granted = self.container.take_memory(more);
        if granted {
            self.memory += more;
        }
        self.refused.store(!granted, Ordering::Relaxed);
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS || maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current) * TABLE_ELEMENT;
        let granted = self.container.take_memory(more);
        if granted {
            self.memory += more;
        }
        self.refused.store(!granted, Ordering::Relaxed);
        Ok(granted)
    }

    fn instances(&self) -> usize {
        if self.is_component { IN_COMPONENT } else { 1 }
    }

    fn tables(&self) -> usize {
        if self.is_component { IN_COMPONENT } else { TABLES }
    }

    fn memories(&self) -> usize {
        if self.is_component { MEMORIES_IN_COMPONENT } else { MEMORIES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_of_one_container_share_its_memory_and_give_it_back() {
        let limits = ContainerLimits { memory: 100, ..Default::default() }.share();
        let mut first = GuestLimiter::new(limits.clone());
        let mut second = GuestLimiter::new(limits.clone());
        assert!(first.memory_growing(0, 60, None).unwrap());
        assert!(!second.memory_growing(0, 60, None).unwrap());
        assert!(second.memory_was_refused());
        assert!(second.memory_growing(0, 40, None).unwrap());
        assert!(!second.memory_was_refused());
        assert_eq!(limits.memory_in_use(), 100);
        drop(first);
        assert_eq!(limits.memory_in_use(), 40);
        assert!(second.memory_growing(40, 100, None).unwrap());
    }

    #[test]
    fn limits_change_while_guests_run_but_not_below_what_they_have() {
        let limits = ContainerLimits { memory: 100, ..Default::default() }.share();
        let mut guest = GuestLimiter::new(limits.clone());
        assert!(guest.memory_growing(0, 60, None).unwrap());
        assert_eq!(limits.resize(50, Some(100)), Err(60));
        assert_eq!((limits.limits().memory, limits.limits().cpu_millis), (100, None), "nothing of it");
        limits.resize(60, Some(100)).unwrap();
        assert!(!guest.memory_growing(60, 61, None).unwrap());
        limits.resize(200, None).unwrap();
        assert!(guest.memory_growing(60, 200, None).unwrap());
        assert_eq!(limits.limits().cpu_millis, None);
    }

    #[test]
    fn containers_of_a_pod_share_its_limits_besides_their_own() {
        let pod = PodLimits { memory: Some(100), cpu_millis: Some(100) }.share();
        let container = |memory| ContainerLimits { memory, ..Default::default() }.share_in(Some(pod.clone()));
        let (large, small) = (container(1000), container(30));
        let (mut first, mut second) = (GuestLimiter::new(large.clone()), GuestLimiter::new(small.clone()));
        assert!(first.memory_growing(0, 80, None).unwrap());
        assert!(!second.memory_growing(0, 21, None).unwrap(), "the pod has no more");
        assert_eq!(small.memory_in_use(), 0, "what the pod refuses is not counted");
        assert!(second.memory_growing(0, 20, None).unwrap());
        assert_eq!(pod.resize(PodLimits { memory: Some(99), cpu_millis: None }), Err(100));
        drop(first);
        assert!(!second.memory_growing(20, 31, None).unwrap(), "nor the container");
        pod.resize(PodLimits { memory: Some(40), cpu_millis: Some(50) }).unwrap();
        assert!(!GuestLimiter::new(large.clone()).memory_growing(0, 21, None).unwrap());
        // What one container spends, the others wait for.
        assert!(large.pay(Duration::from_millis(100)).is_some_and(|pause| pause > Duration::from_millis(800)));
        assert!(small.pay(Duration::ZERO).is_some());
        pod.resize(PodLimits::default()).unwrap();
        assert!(small.pay(Duration::ZERO).is_none());
    }

    #[test]
    fn what_is_beyond_a_limit_from_the_start_is_named() {
        let fits = InitialSizes { memories: 1, memory: 64 << 20, tables: 1, table_elements: 1_000_000 };
        let limits = ContainerLimits::default();
        assert!(fits.beyond(ModuleKind::Module, &limits).is_empty());
        let large = InitialSizes { memories: 2, memory: (64 << 20) + 1, tables: 5, table_elements: 1_000_001 };
        let beyond = large.beyond(ModuleKind::Module, &limits).join("; ");
        for what in ["2 linear memories", "5 tables", "1000001 elements", "65 MiB of memory", "limits.memory"] {
            assert!(beyond.contains(what), "{what}: {beyond}");
        }
        assert_eq!(large.beyond(ModuleKind::Component, &limits).len(), 2, "a component may have more of them");
        assert!(fits.beyond(ModuleKind::Module, &ContainerLimits { memory: 1 << 20, ..limits })[0].contains("64 MiB"));
    }

    #[test]
    fn tables_are_bounded() {
        let mut limiter = GuestLimiter::new(ContainerLimits::default().share());
        assert!(limiter.table_growing(0, TABLE_ELEMENTS, None).unwrap());
        assert!(!limiter.table_growing(0, TABLE_ELEMENTS + 1, None).unwrap());
        // They are paid for.
        let small = ContainerLimits { memory: 8000, ..Default::default() }.share();
        assert!(GuestLimiter::new(small.clone()).table_growing(0, 1000, None).unwrap());
        assert!(!GuestLimiter::new(small).table_growing(0, 1001, None).unwrap());
    }
}
