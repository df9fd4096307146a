//! The end of a pod that is still running: asked for by its deletion or its deadline.
//!
//! # Flow
//! 1. Somebody calls [`Termination::stop`] with a grace period; a second call can only shorten it.
//! 2. Each running container sees it by [`Termination::asked`] and ends its guest in time: the containers at once, the sidecars one
//!    after the other when those that were started after them have ended, the last one first.
//! 3. When no container runs any more ([`Termination::completed`]), the pod's state machine goes to its last state.
//!
//! A pod whose containers have all ended for good ends its sidecars in the same way ([`Termination::finish`]).

use akri_krustlet_host::until;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why a pod is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It is being deleted, and the API server waits for the node.
    Deleted,
    /// It does not exist any more.
    Gone,
    /// It has run for longer than `spec.activeDeadlineSeconds`.
    DeadlineExceeded,
    /// It takes more than it may have, or than the node has left.
    Evicted,
    /// The machine goes down.
    NodeShutdown,
}

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// When guests that have not ended are interrupted.
    pub deadline: Instant,
}

/// A container's place in the pod's end: those with larger ones end before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A sidecar, by its number among the init containers.
    Sidecar(usize),
    /// Any other container.
    Container,
}

/// Whether a pod is to stop, and which of its containers run.
#[derive(Debug, Default)]
pub struct Termination {
    stop: watch::Sender<Option<Stop>>,
    /// Its containers have ended for good; when its sidecars have to have, too.
    finished: watch::Sender<Option<Instant>>,
    running: watch::Sender<Vec<Place>>,
}

impl Termination {
    /// Asks the pod's containers to end within `grace`. The earliest deadline counts, and that a pod is gone before any other
    /// reason.
    pub fn stop(&self, grace: Duration, reason: StopReason) {
        let new = Stop { reason, deadline: Instant::now() + grace };
        self.stop.send_if_modified(|stop| {
            let changed = match stop {
                None => new,
                Some(old) => Stop {
                    deadline: old.deadline.min(new.deadline),
                    reason: if new.reason == StopReason::Gone { StopReason::Gone } else { old.reason },
                },
            };
            stop.replace(changed) != Some(changed)
        });
    }

    /// The request, if there is one.
    pub fn current(&self) -> Option<Stop> {
        *self.stop.borrow()
    }

    /// Resolves with the request.
    pub async fn requested(&self) -> Stop {
        let mut stop = self.stop.subscribe();
        // The sender is ours.
        match stop.wait_for(Option::is_some).await.map(|stop| *stop) {
            Ok(Some(stop)) => stop,
            _ => std::future::pending().await,
        }
    }

    /// The pod's containers have ended for good: its sidecars are to end, all of them within `grace`.
    pub fn finish(&self, grace: Duration) {
        self.finished.send_replace(Some(Instant::now() + grace));
    }

    /// No container of the pod is started again.
    pub fn is_over(&self) -> bool {
        self.current().is_some() || self.finished.borrow().is_some()
    }

    async fn over(&self) {
        let mut finished = self.finished.subscribe();
        tokio::select! {
            _ = self.requested() => {}
            _ = finished.wait_for(Option::is_some) => {}
        }
    }

    /// Resolves when a running container is to end with its pod; by when.
    pub async fn asked(&self, place: Place) -> Instant {
        if place == Place::Container {
            return self.requested().await.deadline;
        }
        self.over().await;
        let expired = self.expired();
        let mut running = self.running.subscribe();
        tokio::select! {
            _ = running.wait_for(|running| running.iter().all(|other| *other <= place)) => {}
            // Nobody after it has ended in time.
            () = expired => {}
        }
        match (self.current(), *self.finished.borrow()) {
            (Some(stop), _) => stop.deadline,
            (None, deadline) => deadline.unwrap_or_else(Instant::now),
        }
    }

    /// Resolves when no container of the pod is started again and this one does not run.
    pub async fn over_without(&self, place: Place) {
        self.over().await;
        let _ = self.running.subscribe().wait_for(|running| !running.contains(&place)).await;
    }

    /// Resolves when the deadline of a request has come, however often it is moved.
    pub async fn expired(&self) {
        let mut stop = self.stop.subscribe();
        loop {
            let deadline = stop.borrow_and_update().map(|stop| stop.deadline);
            tokio::select! {
                () = until(deadline) => return,
                _ = stop.changed() => {}
            }
        }
    }

    /// A container runs, until the guard is dropped.
    pub fn enter(&self, place: Place) -> RunningContainer<'_> {
        self.running.send_modify(|running| running.push(place));
        RunningContainer(self, place)
    }

    /// Resolves when a stop was requested and no container runs.
    pub async fn completed(&self) {
        self.requested().await;
        let _ = self.running.subscribe().wait_for(Vec::is_empty).await;
    }
}

/// The end of the node: containers that can notice it (by the end of their standard input) have a moment for that.
#[derive(Debug, Default)]
pub struct Shutdown {
    requested: CancellationToken,
    listening: watch::Sender<usize>,
}

impl Shutdown {
    /// A container that can notice the node's end runs, until the guard is dropped.
    pub fn enter(&self) -> Listening<'_> {
        self.listening.send_modify(|listening| *listening += 1);
        Listening(self)
    }

    /// Resolves when the node is ending.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Tells the containers, and waits until those that notice it have ended, or `grace` is over.
    pub async fn request(&self, grace: Duration) {
        self.requested.cancel();
        let mut listening = self.listening.subscribe();
        let _ = tokio::time::timeout(grace, listening.wait_for(|listening| *listening == 0)).await;
    }
}

/// Counts a container as one that notices the node's end.
#[derive(Debug)]
pub struct Listening<'a>(&'a Shutdown);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.listening.send_modify(|listening| *listening -= 1);
    }
}

/// Counts a container as running.
#[derive(Debug)]
pub struct RunningContainer<'a>(&'a Termination, Place);

impl Drop for RunningContainer<'_> {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| {
            if let Some(index) = running.iter().position(|place| *place == self.1) {
                running.swap_remove(index);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sidecars_end_when_those_after_them_have_and_the_last_one_first() {
        for is_stopped in [true, false] {
            let termination = Termination::default();
            let places = [Place::Sidecar(0), Place::Sidecar(2), Place::Container];
            let [first, second, container] = places.map(|place| termination.enter(place));
            let asked = |place| Box::pin(termination.asked(place));
            let mut of_first = asked(Place::Sidecar(0));
            let mut of_second = asked(Place::Sidecar(2));
            assert!(futures::poll!(&mut of_first).is_pending() && !termination.is_over());
            if is_stopped {
                termination.stop(Duration::from_secs(30), StopReason::Deleted);
                asked(Place::Container).await;
                assert!(futures::poll!(&mut of_second).is_pending());
                drop(container);
            } else {
                drop(container);
                assert!(futures::poll!(&mut of_second).is_pending());
                termination.finish(Duration::from_secs(30));
            }
            assert_eq!(of_second.await - Instant::now(), Duration::from_secs(30));
            assert!(futures::poll!(&mut of_first).is_pending() && termination.is_over());
            drop(second);
            of_first.await;
            drop(first);
            termination.over_without(Place::Sidecar(0)).await;
        }
        let termination = Termination::default();
        let _runs_on = termination.enter(Place::Container);
        termination.stop(Duration::from_secs(5), StopReason::Deleted);
        let started = Instant::now();
        termination.asked(Place::Sidecar(0)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(5), "what does not end keeps no sidecar");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_stop_only_shortens_and_running_containers_are_waited_for() {
        let termination = Termination::default();
        let container = termination.enter(Place::Container);
        termination.stop(Duration::from_secs(30), StopReason::Deleted);
        termination.stop(Duration::from_secs(60), StopReason::DeadlineExceeded);
        let stop = termination.requested().await;
        assert_eq!((stop.reason, stop.deadline - Instant::now()), (StopReason::Deleted, Duration::from_secs(30)));
        let expired = termination.expired();
        tokio::pin!(expired);
        assert!(futures::poll!(&mut expired).is_pending());
        termination.stop(Duration::ZERO, StopReason::Gone);
        expired.await;
        assert_eq!(termination.current().unwrap().reason, StopReason::Gone);
        let completed = termination.completed();
        tokio::pin!(completed);
        assert!(futures::poll!(&mut completed).is_pending());
        drop(container);
        completed.await;
    }
}
