//! Who wants the same waits for whoever is at it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OwnedMutexGuard;

/// Work that is done for one at a time, by what it is about. Keeps nothing of what nobody is at.
#[derive(Debug)]
pub struct Turns<K> {
    locks: Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { locks: Mutex::default() }
    }
}

impl<K: Eq + Hash> Turns<K> {
    /// Waits for whoever is at the same. The next one's turn is when this is dropped.
    pub async fn take(&self, about: K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let lock = locks.get(&about).and_then(Weak::upgrade).unwrap_or_default();
            locks.insert(about, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }
}
