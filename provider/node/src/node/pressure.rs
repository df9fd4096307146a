//! What becomes of the node's pods and images when the machine is short of something; the rules are those of
//! [`crate::eviction`].

use super::{KnownPod, Node};
use crate::cluster::events::EventType;
use crate::eviction::{self, Candidate, Resource};
use crate::local_storage::LocalStorage;
use crate::placement;
use crate::pod::PodObject;
use akri_krustlet_host::file::remove_tree;
use akri_krustlet_images::{Unused, reference};
use std::collections::HashSet;
use std::sync::atomic::Ordering;

impl Node {
    /// Evicts a pod if the machine is short of memory or, when images have been removed, of space.
    pub(super) fn relieve(&mut self) {
        let acute = self.services.pressure.look();
        let is_disk = acute.as_ref().is_some_and(|(resource, _)| *resource == Resource::Storage);
        let had_full_disk = std::mem::replace(&mut self.had_full_disk, is_disk);
        match acute {
            None => {}
            Some((Resource::Memory, state)) => {
                let in_use = |known: &KnownPod| {
                    known.context.memory_in_use().saturating_add(self.services.memory.in_use(known.pod.uid()))
                };
                let candidates = self
                    .may_end()
                    .map(|known| Candidate { used: in_use(known), ..candidate(known, "memory") })
                    .collect();
                self.evict_first(Resource::Memory, &state, candidates);
            }
            // Images that nobody runs go before each pod; the first time, that may be enough.
            Some((Resource::Storage, _)) if !had_full_disk => self.collect_garbage(Unused::All),
            Some((Resource::Storage, state)) => {
                self.collect_garbage(Unused::All);
                self.measure(state);
            }
        }
    }

    /// Pods that run and are not ended already.
    fn may_end(&self) -> impl Iterator<Item = &KnownPod> {
        self.pods.values().filter(|known| known.running && known.context.termination.current().is_none())
    }

    /// Finds out what the pods take of the disk, if that is not under way.
    fn measure(&mut self, state: String) {
        if !self.measured.is_empty() {
            return;
        }
        let data = self.services.data.clone();
        let pods: Vec<_> =
            self.may_end().map(|known| (known.pod.clone(), candidate(known, "ephemeral-storage"))).collect();
        self.measured.spawn_blocking(move || {
            let used = |pod: &PodObject| LocalStorage::of(&data, pod).total();
            (state, pods.into_iter().map(|(pod, candidate)| Candidate { used: used(&pod), ..candidate }).collect())
        });
    }

    pub(super) fn evict_first(&self, resource: Resource, state: &str, candidates: Vec<Candidate>) {
        let Some(first) = eviction::first(candidates) else { return };
        let Some(known) = self.may_end().find(|known| known.pod.uid() == first.uid) else { return };
        let name = resource.name();
        known.context.evict_for_node(resource.signal(), format!("The node was low on resource: {name}. {state}"));
    }

    /// Removes images that no pod runs, if the disk is nearly full.
    pub(super) fn collect_garbage(&self, unused: Unused) {
        let mut used = HashSet::new();
        for known in self.pods.values() {
            let containers = known.pod.init_containers().iter().chain(&known.pod.spec().containers);
            let images = containers.filter_map(|container| reference::parse(container.image.as_ref()?).ok());
            used.extend(images.map(|reference| reference.whole()));
        }
        let (services, told_full) = (self.services.clone(), self.told_full.clone());
        tokio::task::spawn_blocking(move || match services.registry.collect_garbage(&used, unused) {
            Ok(None) => told_full.store(false, Ordering::Relaxed),
            Ok(Some((_, modules))) if modules.is_empty() => {
                if !told_full.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the disk is nearly full, and no image can be removed: make room on it");
                }
            }
            Ok(Some((bytes, modules))) => {
                modules.iter().for_each(|module| services.runtime.discard(module));
                let message = format!("the disk is nearly full; removed {} images, {bytes} bytes", modules.len());
                tracing::warn!("{message}");
                services.events.node(&services.node.name, EventType::Normal, "ImageGarbageCollection", message);
            }
            Err(error) => tracing::warn!(%error, "cannot remove unused images"),
        });
    }

    /// What an evicted pod has on the disk goes at once, but for its logs.
    pub(super) fn free(&self, uid: &str) {
        let (directory, memory) = (self.services.data.pod(uid), self.services.memory.clone());
        memory.set_aside(uid);
        tokio::task::spawn_blocking(move || {
            memory.remove_aside();
            for part in ["volumes", "files", "exchange", "streams"] {
                if let Err(error) = remove_tree(&directory.join(part)) {
                    tracing::warn!(directory = %directory.display(), %error, "cannot remove what an evicted pod left");
                }
            }
        });
    }
}

/// A pod that may be evicted, without what it takes.
fn candidate(known: &KnownPod, resource: &str) -> Candidate {
    Candidate {
        uid: known.pod.uid().to_owned(),
        priority: eviction::priority(&known.pod),
        used: 0,
        requested: placement::requested(&known.context.latest(), resource),
    }
}
