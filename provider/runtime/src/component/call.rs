//! One call of a component: where it runs, how long it may take, and how it fails.

use super::{ComponentSpec, ComponentState};
use crate::limits::SharedLimits;
use crate::network::NetworkAccess;
use crate::outcome::{Outcome, catch_host_panic, classify};
use crate::preopen::PreopenError;
use crate::runtime::Runtime;
use crate::world::World;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::Store;

/// Why a call has no result. The instance is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// It took longer than it may.
    Deadline(Duration),
    /// It trapped, exited, or ran out of memory.
    Ended(Outcome),
}

impl fmt::Display for CallError {
    /// As a sentence goes on that names the call.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline(time) => write!(f, "took longer than {} s", time.as_secs_f32()),
            Self::Ended(outcome) => outcome.fmt(f),
        }
    }
}

/// Calls that are on the thread that asks.
static INLINE: Semaphore = Semaphore::const_new(1);

impl Runtime {
    /// A store for one instance of a component, which may reach so much, nothing by default, and sees this of the world.
    pub fn component_store(
        &self,
        spec: &ComponentSpec,
        network: Option<Arc<NetworkAccess>>,
        world: World,
    ) -> Result<Store<ComponentState>, PreopenError> {
        super::store(self.engine(), self.event_sources(), spec, network, world)
    }

    /// Runs `work`, calls of an instance whose store it owns, on the guest threads, at most for `deadline`. With `inline` it begins
    /// on the thread that asks, and only what has not ended after that time goes to the guest threads: for answers that somebody
    /// waits for, and that most often take less than the way there.
    pub async fn call<T: Send + 'static>(
        &self,
        limits: &Arc<SharedLimits>,
        name: &str,
        inline: Option<Duration>,
        deadline: Duration,
        work: impl Future<Output = (Store<ComponentState>, wasmtime::Result<T>)> + Send + 'static,
    ) -> Result<(Store<ComponentState>, T), CallError> {
        let work = self.threads().meter(limits.clone(), work);
        let mut work = Box::pin(catch_host_panic(name.to_owned(), async move {
            let (store, result) = work.await;
            match result {
                Ok(result) => Ok((store, result)),
                Err(error) => Err(classify(Err(error), &store.data().limiter)),
            }
        }));
        if self.replays() {
            return self.call_in_replay(deadline, work).await;
        }
        // A guest that does not yield holds the thread for an epoch, or for a copy of all its memory: one thread at most.
        let begun = match (inline, INLINE.try_acquire()) {
            (Some(time), Ok(_only)) => tokio::time::timeout(time, &mut work).await.ok(),
            _ => None,
        };
        let done = match begun {
            Some(done) => done,
            None => {
                let rest = AbortOnDropHandle::new(
                    self.threads().spawn(async move { tokio::time::timeout(deadline, work).await }),
                );
                match rest.await {
                    Ok(Ok(done)) => done,
                    Ok(Err(_)) => return Err(CallError::Deadline(deadline)),
                    // The threads were shut down with the runtime.
                    Err(_) => return Err(CallError::Ended(Outcome::Interrupted)),
                }
            }
        };
        done.unwrap_or_else(Err).map_err(CallError::Ended)
    }

    /// On the thread that asks, whose time is the recording's; the deadline is one of this machine's time, too.
    async fn call_in_replay<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<Result<T, Outcome>, Outcome>>,
    ) -> Result<T, CallError> {
        // Made there: a timer is of the runtime that it is made in.
        let late = self.threads().spawn(async move { tokio::time::sleep(deadline).await });
        let late = AbortOnDropHandle::new(late);
        let done = tokio::select! {
            done = tokio::time::timeout(deadline, work) => done.map_err(|_| CallError::Deadline(deadline))?,
            _ = late => return Err(CallError::Deadline(deadline)),
        };
        done.unwrap_or_else(Err).map_err(CallError::Ended)
    }
}
