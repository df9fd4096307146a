//! Which Instances of this node's devices Akri has made, where the node may read them.
//!
//! # Guarantees
//! - Nothing is asked for before a handler lists a device.
//! - What is told is what the API server has: while the watch fails, nothing is told.

use super::History;
use super::connection::{code, describe};
use akri_krustlet_discovery::instance::{Hash, Instances, hash_of};
use futures::StreamExt as _;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Where the node may not read Instances, or there are none in this cluster, it tries again after this time.
const RETRY: Duration = Duration::from_secs(60);
/// After a watch that failed otherwise.
const AGAIN: Duration = Duration::from_secs(2);

/// Follows the Instances of the whole cluster and tells those of this node. Never ends.
pub async fn follow(client: Client, history: History, instances: Arc<Instances>) {
    let mut told = false;
    loop {
        instances.wanted().await;
        let error = watch(&client, &history, &instances).await;
        instances.update(None);
        let Some(error) = error else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        if !std::mem::replace(&mut told, true) {
            tracing::info!(
                "{error}; the node repeats its lists of devices for the Agent without knowing whether that is needed (manifests/node/rbac.yaml has the right)"
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Watches until the watch fails; what the API server said, if this cannot be. Begins with a list, so that what came and went
/// between two watches is not missed.
async fn watch(client: &Client, history: &History, instances: &Instances) -> Option<String> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("akri.sh", "v0", "Instance"));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let mut changes = history.follow(move || watcher(api.clone(), watcher::Config::default()));
    // By namespace and name.
    let mut present: HashMap<(String, String), Hash> = HashMap::new();
    let mut is_complete = false;
    while let Some(change) = changes.next().await {
        match change {
            Ok(watcher::Event::Init) => {
                present.clear();
                is_complete = false;
            }
            Ok(watcher::Event::InitApply(instance) | watcher::Event::Apply(instance)) => {
                let key = key(&instance);
                match here(&instance, instances.node()) {
                    Some(hash) => present.insert(key, hash),
                    None => present.remove(&key),
                };
            }
            Ok(watcher::Event::Delete(instance)) => {
                present.remove(&key(&instance));
            }
            Ok(watcher::Event::InitDone) => is_complete = true,
            Err(watcher::Error::InitialListFailed(error)) if matches!(code(&error), Some(403 | 404)) => {
                return Some(match code(&error) {
                    Some(404) => "this cluster has no instances.akri.sh".to_owned(),
                    _ => describe(&error),
                });
            }
            Err(error) => {
                tracing::debug!("cannot watch instances.akri.sh: {error}");
                return None;
            }
        }
        if is_complete {
            let mut counts = HashMap::new();
            present.values().for_each(|hash| *counts.entry(*hash).or_default() += 1);
            instances.update(Some(counts));
        }
    }
    None
}

fn key(instance: &DynamicObject) -> (String, String) {
    let metadata = &instance.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// The hash of an Instance that is on this node and stays.
fn here(instance: &DynamicObject, node: &str) -> Option<Hash> {
    let nodes = instance.data["spec"]["nodes"].as_array()?;
    let stays = instance.metadata.deletion_timestamp.is_none();
    let hash = hash_of(instance.metadata.name.as_ref()?)?;
    (stays && nodes.iter().any(|name| name == node)).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_instance_counts_on_its_nodes_while_it_stays() {
        let instance = |metadata: serde_json::Value| -> DynamicObject {
            let object = json!({"metadata": metadata, "spec": {"configurationName": "c", "nodes": ["a", "b"]}});
            serde_json::from_value(object).unwrap()
        };
        let good = instance(json!({"name": "c-8120fe"}));
        assert_eq!(here(&good, "b"), Some([0x81, 0x20, 0xfe]));
        assert_eq!(here(&good, "c"), None);
        let going = instance(json!({"name": "c-8120fe", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(here(&going, "a"), None);
        assert_eq!(here(&instance(json!({"name": "c"})), "a"), None);
    }
}
