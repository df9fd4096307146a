//! What a node has of its pods on the disk: written when they change, removed when they are gone.

use super::Node;
use crate::data_directory::{DataDirectory, file_name};
use crate::pod::{MANIFEST_ANNOTATION, PodObject};
use akri_krustlet_host::file::remove_tree;
use std::collections::HashSet;
use std::path::PathBuf;

impl Node {
    /// Removes what a pod has on the disk: its place is free at once, and the files go in their time.
    pub(super) fn remove_files(&self, pod: &k8s_openapi::api::core::v1::Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let memory = self.services.memory.clone();
        memory.set_aside(&uid);
        tokio::task::spawn_blocking(move || memory.remove_aside());
        match self.services.data.set_aside(pod) {
            Ok(aside) => self.remove_directories(uid, aside),
            Err(error) => tracing::warn!(uid, %error, "cannot remove the files of a pod that is gone"),
        }
    }

    pub(super) fn remove_directories(&self, uid: String, directories: Vec<PathBuf>) {
        if directories.is_empty() {
            return;
        }
        tokio::task::spawn_blocking(move || {
            for directory in directories {
                if let Err(error) = remove_tree(&directory) {
                    tracing::warn!(uid, directory = %directory.display(), %error, "cannot remove the files of a pod that is gone");
                }
            }
        });
    }

    /// Removes what is left of pods that went while the node was down.
    pub(super) fn forget_others(&self, unreadable: &[PathBuf]) {
        let cannot_list = |error| tracing::warn!(%error, "cannot list the pods of the data directory");
        let stored = match self.services.data.each_pod() {
            Ok(stored) => stored,
            Err(error) => return cannot_list(error),
        };
        let mut kept: HashSet<String> = self.pods.keys().cloned().collect();
        for stored in stored {
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => return cannot_list(error),
            };
            let uid = stored.pod.metadata.uid.as_deref().unwrap_or_default();
            let annotations = stored.pod.metadata.annotations.as_ref();
            let manifest = annotations.and_then(|annotations| annotations.get(MANIFEST_ANNOTATION));
            if manifest.is_some_and(|manifest| unreadable.contains(&PathBuf::from(manifest))) {
                tracing::warn!(
                    uid,
                    manifest,
                    "the pod's manifest cannot be read; the pod is remembered and not run until it can"
                );
                kept.insert(uid.to_owned());
                continue;
            }
            if !self.pods.contains_key(uid) {
                self.remove_files(&stored.pod);
            }
        }
        // Before a pod is remembered, it has a directory and nothing else.
        for (name, directory) in self.services.data.unfinished() {
            if self.pods.keys().any(|uid| file_name(uid) == name) {
                continue;
            }
            match self.services.data.set_unfinished_aside(&directory) {
                Ok(aside) => self.remove_directories(name, aside.into_iter().collect()),
                Err(error) => tracing::warn!(uid = name, %error, "cannot remove the files of a pod that is gone"),
            }
        }
        if let Some(devices) = &self.services.devices {
            devices.retain(|uid| kept.contains(uid));
        }
        let memory = self.services.memory.clone();
        memory.set_others_aside(&kept);
        tokio::task::spawn_blocking(move || memory.remove_aside());
    }
}

pub(super) fn store(data: &DataDirectory, pod: &PodObject) {
    if let Err(error) = data.store_pod(pod) {
        tracing::error!(pod = pod.key(), %error, "cannot write the pod to the data directory");
    }
}
