//! The Instances that Akri makes of devices: their names, and whether they are there.
//!
//! A Discover request does not tell its Configuration, so a stream cannot know the names of its Instances. It knows how they
//! end: in a hash of the device's id. An Instance is missing while the API server has fewer of a hash on this node than streams
//! are open that list a device of it.

use akri_proto::v0::DiscoverResponse;
use blake2::digest::consts::U3;
use blake2::{Blake2b, Digest as _};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;

/// What the name of an Instance ends in.
pub type Hash = [u8; 3];

/// The name of the Instance that Akri makes of a device: the Configuration's name and 24 bits of BLAKE2b over the device's
/// id, followed by the node's name if other nodes cannot see the device.
pub fn name(configuration: &str, device_id: &str, shared: bool, node: &str) -> String {
    let hash = hash(device_id, shared, node);
    format!("{configuration}-{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2])
}

/// The end of that name.
fn hash(device_id: &str, shared: bool, node: &str) -> Hash {
    let mut hash = Blake2b::<U3>::new();
    hash.update(device_id);
    if !shared {
        hash.update(node);
    }
    hash.finalize().into()
}

/// The hash at the end of an Instance's name.
pub fn hash_of(instance: &str) -> Option<Hash> {
    let (_, digits) = instance.rsplit_once('-')?;
    if digits.len() != 6 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some(u32::from_str_radix(digits, 16).ok()?.to_be_bytes()[1..].try_into().unwrap_or_default())
}

/// What is known of the Instances of a node's devices.
#[derive(Debug)]
pub struct Instances {
    node: String,
    /// How many there are, by hash; none while that cannot be told.
    present: watch::Sender<Option<HashMap<Hash, usize>>>,
    /// How many streams list a device of a hash.
    listed: Mutex<HashMap<Hash, usize>>,
    any_listed: watch::Sender<bool>,
    began: Instant,
}

impl Instances {
    /// Of a node of this name.
    pub fn new(node: &str) -> Arc<Self> {
        Arc::new(Self {
            node: node.to_owned(),
            present: watch::Sender::new(None),
            listed: Mutex::default(),
            any_listed: watch::Sender::new(false),
            began: Instant::now(),
        })
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The Instances that the API server has of this node, by hash, without those that are being deleted; none if that cannot
    /// be told any more.
    pub fn update(&self, present: Option<HashMap<Hash, usize>>) {
        self.present.send_if_modified(|known| {
            let differs = *known != present;
            *known = present;
            differs
        });
    }

    /// Resolves when a stream lists a device: before that, nobody asks for Instances.
    pub async fn wanted(&self) {
        // The sender lives as long as `self`.
        let _ = self.any_listed.subscribe().wait_for(|any| *any).await;
    }

    /// For a stream that opens.
    pub(crate) fn of_stream(self: &Arc<Self>) -> StreamInstances {
        StreamInstances { instances: self.clone(), present: self.present.subscribe(), hashes: Vec::new() }
    }

    fn listed(&self) -> MutexGuard<'_, HashMap<Hash, usize>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Instances of the devices that one stream lists.
#[derive(Debug)]
pub(crate) struct StreamInstances {
    instances: Arc<Instances>,
    present: watch::Receiver<Option<HashMap<Hash, usize>>>,
    hashes: Vec<Hash>,
}

impl StreamInstances {
    /// When the node began to have streams.
    pub(crate) fn began(&self) -> Instant {
        self.instances.began
    }

    /// Another list is in force.
    pub(crate) fn list(&mut self, list: &DiscoverResponse, shared: bool) {
        let node = &self.instances.node;
        let hashes = list.devices.iter().map(|device| hash(&device.id, shared, node)).collect();
        self.replace(hashes);
    }

    /// Whether one of them is missing; `None` if that cannot be told.
    pub(crate) fn is_one_missing(&self) -> Option<bool> {
        let present = self.present.borrow();
        let present = present.as_ref()?;
        let listed = self.instances.listed();
        let of = |counts: &HashMap<Hash, usize>, hash: &Hash| counts.get(hash).copied().unwrap_or(0);
        Some(self.hashes.iter().any(|hash| of(present, hash) < of(&listed, hash)))
    }

    /// Resolves when Instances came or went.
    pub(crate) async fn changed(&mut self) {
        if self.present.changed().await.is_err() {
            std::future::pending().await
        }
    }

    fn replace(&mut self, hashes: Vec<Hash>) {
        let mut listed = self.instances.listed();
        for hash in &hashes {
            *listed.entry(*hash).or_default() += 1;
        }
        for hash in std::mem::replace(&mut self.hashes, hashes) {
            if let Some(count) = listed.get_mut(&hash) {
                *count -= 1;
                if *count == 0 {
                    listed.remove(&hash);
                }
            }
        }
        let any = !listed.is_empty();
        drop(listed);
        self.instances.any_listed.send_if_modified(|was| std::mem::replace(was, any) != any);
    }
}

impl Drop for StreamInstances {
    fn drop(&mut self) {
        self.replace(Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_proto::v0::Device;

    #[test]
    fn names_are_those_that_akri_gives() {
        // Observed with Akri 0.13.26 for a shared device.
        assert_eq!(name("akri-debug-echo", "foo0", true, "node-a"), "akri-debug-echo-8120fe");
        // The 2021 proxy's ids carried quotes.
        assert_eq!(name("akri-debug-echo", "\"foo0\"", true, "node-a"), "akri-debug-echo-aae70c");
        assert_ne!(name("c", "foo0", false, "node-a"), name("c", "foo0", false, "node-b"));
        assert_eq!(name("c", "foo0node-a", true, ""), name("c", "foo0", false, "node-a"));
    }

    #[test]
    fn a_hash_is_read_from_the_end_of_a_name() {
        assert_eq!(hash_of("akri-debug-echo-8120fe"), Some(hash("foo0", true, "")));
        assert_eq!(hash_of("a-00000f"), Some([0, 0, 15]));
        for other in ["", "8120fe", "a-8120f", "a-8120fez", "a-+120fe", "a-8120fe-"] {
            assert_eq!(hash_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_instance_is_missing_while_there_are_fewer_than_streams_that_list_it() {
        let list = |ids: &[&str]| DiscoverResponse {
            devices: ids.iter().map(|id| Device { id: (*id).to_owned(), ..Device::default() }).collect(),
        };
        let instances = Instances::new("n");
        let (mut one, mut other) = (instances.of_stream(), instances.of_stream());
        one.list(&list(&["a", "b"]), true);
        other.list(&list(&["a"]), true);
        assert_eq!(one.is_one_missing(), None, "nothing is known");
        let (a, b) = (hash("a", true, "n"), hash("b", true, "n"));
        instances.update(Some(HashMap::from([(a, 1), (b, 1)])));
        assert_eq!((one.is_one_missing(), other.is_one_missing()), (Some(true), Some(true)), "of one of them");
        instances.update(Some(HashMap::from([(a, 2)])));
        assert_eq!((one.is_one_missing(), other.is_one_missing()), (Some(true), Some(false)));
        one.list(&list(&["a"]), false);
        assert_eq!(one.is_one_missing(), Some(true), "of a device that other nodes do not see, the name is another");
        drop(one);
        instances.update(Some(HashMap::from([(a, 1)])));
        assert_eq!(other.is_one_missing(), Some(false));
        drop(other);
        assert!(instances.listed().is_empty());
        assert!(!*instances.any_listed.borrow());
    }
}
