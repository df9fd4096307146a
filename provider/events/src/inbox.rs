//! Where events wait for their owner.

use akri_krustlet_metrics::counted;
use futures::FutureExt as _;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Events that wait for one owner, of all its subscriptions together.
pub const MOST_EVENTS: usize = 256;
/// Their bytes.
pub const MOST_BYTES: usize = 256 << 10;

/// What waits for one owner, and how it hears of it.
#[derive(Debug, Default)]
pub struct Inbox {
    arrived: Notify,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    events: usize,
    bytes: usize,
    /// Flags that are raised.
    flags: usize,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Resolves when something has come, or was lost, that was not taken meanwhile. What
    /// stays does not resolve it again, unless a part was taken.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn take_room(&self, bytes: usize) -> bool {
        let mut used = self.used();
        let has_room = used.events < MOST_EVENTS && used.bytes + bytes <= MOST_BYTES;
        if has_room {
            used.events += 1;
            used.bytes += bytes;
            self.arrived.notify_one();
        }
        has_room
    }

    fn give_room(&self, events: usize, bytes: usize) {
        let mut used = self.used();
        used.events -= events;
        used.bytes -= bytes;
        self.settle(&used);
    }

    /// An owner that has taken all is not woken for it.
    fn settle(&self, used: &Used) {
        if used.events == 0 && used.flags == 0 {
            let _ = self.arrived.notified().now_or_never();
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that its owner is to look at, however often it happened.
#[derive(Debug)]
pub(crate) struct Flag {
    inbox: Arc<Inbox>,
    is_raised: AtomicBool,
}

impl Flag {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, is_raised: AtomicBool::new(false) }
    }

    pub(crate) fn raise(&self) {
        let mut used = self.inbox.used();
        if !self.is_raised.swap(true, Ordering::Relaxed) {
            used.flags += 1;
        }
        self.inbox.arrived.notify_one();
    }

    pub(crate) fn lower(&self) {
        let mut used = self.inbox.used();
        if self.is_raised.swap(false, Ordering::Relaxed) {
            used.flags -= 1;
        }
        self.inbox.settle(&used);
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.lower();
    }
}

/// The events of one subscription.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    inbox: Arc<Inbox>,
    waiting: Mutex<Waiting<T>>,
    has_lost: Flag,
}

#[derive(Debug)]
struct Waiting<T> {
    /// With the bytes of each.
    events: VecDeque<(T, usize)>,
    lost: u32,
}

impl<T> Queue<T> {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        let has_lost = Flag::new(inbox.clone());
        Self { inbox, waiting: Mutex::new(Waiting { events: VecDeque::new(), lost: 0 }), has_lost }
    }

    pub(crate) fn push(&self, event: T, bytes: usize) {
        let mut waiting = self.waiting();
        // Nothing comes behind a gap that the owner does not know of.
        if waiting.lost == 0 && self.inbox.take_room(bytes) {
            waiting.events.push_back((event, bytes));
        } else {
            self.count_lost(&mut waiting);
        }
    }

    /// Whether what comes now is lost: then there is no need to make it.
    pub(crate) fn is_losing(&self) -> bool {
        self.waiting().lost > 0
    }

    /// Somebody else has lost events that may have been for this one.
    pub(crate) fn lose(&self) {
        self.count_lost(&mut self.waiting());
    }

    fn count_lost(&self, waiting: &mut Waiting<T>) {
        waiting.lost = waiting.lost.saturating_add(1);
        counted().events_lost.add([]);
        self.has_lost.raise();
    }

    /// At most `most` events, in their order, and if those were all, how many were lost after them.
    pub(crate) fn take(&self, most: usize) -> (Vec<T>, u32) {
        let mut waiting = self.waiting();
        let count = waiting.events.len().min(most);
        let taken: Vec<_> = waiting.events.drain(..count).collect();
        let mut lost = 0;
        if waiting.events.is_empty() {
            // A burst's room is not kept.
            waiting.events.shrink_to(4);
            lost = std::mem::take(&mut waiting.lost);
            self.has_lost.lower();
        }
        let is_rest = !waiting.events.is_empty();
        drop(waiting);
        self.inbox.give_room(taken.len(), taken.iter().map(|(_, bytes)| bytes).sum());
        if is_rest && !taken.is_empty() {
            // Whoever takes a part is called for the rest.
            self.inbox.arrived.notify_one();
        }
        (taken.into_iter().map(|(event, _)| event).collect(), lost)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner);
        let bytes = waiting.events.iter().map(|(_, bytes)| bytes).sum();
        self.inbox.give_room(waiting.events.len(), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_no_room_is_counted_and_taken_after_what_had() {
        let inbox = Inbox::new();
        let (one, two) = (Queue::new(inbox.clone()), Queue::new(inbox.clone()));
        for number in 0..300 {
            one.push(number, 10);
        }
        two.push(0, 10);
        inbox.arrived().await;
        assert_eq!(two.take(10), (vec![], 1));
        assert_eq!(one.take(100), ((0..100).collect(), 0));
        one.push(300, 10);
        assert_eq!(one.take(1000), ((100..256).collect(), 45));
        one.push(301, MOST_BYTES);
        assert_eq!(one.take(1000), (vec![301], 0));
        one.push(302, MOST_BYTES + 1);
        assert_eq!(one.take(1000), (vec![], 1));
    }

    #[test]
    fn who_has_taken_all_is_not_woken_for_it() {
        let inbox = Inbox::new();
        let is_woken = || inbox.arrived().now_or_never().is_some();
        let (one, two) = (Queue::new(inbox.clone()), Flag::new(inbox.clone()));
        assert!(!is_woken());
        one.push(1, 1);
        one.take(1);
        assert!(!is_woken());
        one.push(1, 1);
        two.raise();
        one.take(1);
        assert!(is_woken() && !is_woken(), "once, whatever stays");
        two.lower();
        one.push(1, MOST_BYTES + 1);
        one.take(1);
        assert!(!is_woken());
        one.lose();
        drop(one);
        assert!(!is_woken());
    }

    #[test]
    fn the_room_of_what_nobody_took_is_given_back() {
        let inbox = Inbox::new();
        let queue = Queue::new(inbox.clone());
        (0..300).for_each(|number| queue.push(number, 1));
        drop(queue);
        let queue = Queue::new(inbox);
        queue.push(1, MOST_BYTES);
        assert_eq!(queue.take(1), (vec![1], 0));
    }
}
