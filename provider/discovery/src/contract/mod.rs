//! How the guests of a handler are asked, and how they answer. A session knows only what is the same for all of them: a request,
//! what is said, the end.

pub mod component;
pub mod exchange;

use crate::container::{ContainerError, ContainerSpec};
use crate::details::DiscoveryRequest;
use crate::device::Said;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_runtime::wasi::Progress;
use akri_krustlet_runtime::{ModuleKind, Outcome, Runtime};
use component::{Component, ComponentGuest};
use exchange::{Exchange, ExchangeGuest};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use exchange::directory::Files;

/// The guests of one container, by what they are.
#[derive(Debug)]
pub(crate) enum Contract {
    /// Modules: files, as in 2021.
    Exchange(Arc<Exchange>),
    /// Components: calls.
    Component(Arc<Component>),
}

/// The guest of one stream. Dropping it ends it.
#[derive(Debug)]
pub(crate) enum Guest {
    /// See [`Contract::Exchange`].
    Exchange(ExchangeGuest),
    /// See [`Contract::Component`].
    Component(ComponentGuest),
}

/// What there was to take of a guest.
#[derive(Debug)]
pub(crate) struct Taken {
    /// What it said, if it did. An error says what is wrong with how it said it.
    pub said: Result<Option<Said>, String>,
    /// The work that it was, in bytes.
    pub bytes: usize,
}

/// How a guest came to its end.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// As any guest ends.
    Guest(Outcome),
    /// It is of no use any more, and says or showed why.
    Failed(String),
}

impl Contract {
    pub(crate) fn start(
        runtime: Arc<Runtime>,
        watcher: &DirectoryWatcher,
        spec: Arc<ContainerSpec>,
        stopped: CancellationToken,
    ) -> Result<Self, ContainerError> {
        match spec.program.kind() {
            ModuleKind::Module => Exchange::start(runtime, watcher, spec, stopped).map(Self::Exchange),
            ModuleKind::Component => Component::start(runtime, spec).map(Self::Component),
        }
    }

    /// Resolves when the container has ended by itself.
    pub(crate) async fn ended(&self) -> Outcome {
        match self {
            Self::Exchange(exchange) => exchange.ended().await,
            // Nothing runs between two calls.
            Self::Component(_) => std::future::pending().await,
        }
    }

    pub(crate) fn stop(&self) {
        match self {
            Self::Exchange(exchange) => exchange.stop(),
            Self::Component(_) => {}
        }
    }

    /// The user's files, as long as they are the contract's.
    pub(crate) fn files(&self) -> watch::Receiver<Arc<Files>> {
        match self {
            Self::Exchange(exchange) => exchange.files(),
            // None, for ever.
            Self::Component(_) => watch::channel(Arc::default()).1,
        }
    }

    /// A guest for a stream.
    pub(crate) fn take_guest(&self) -> Result<Guest, ContainerError> {
        match self {
            Self::Exchange(exchange) => exchange.take_guest().map(Guest::Exchange),
            Self::Component(component) => Ok(Guest::Component(component.guest())),
        }
    }
}

impl Guest {
    /// Gives the guest its request.
    pub(crate) async fn request(&self, request: &Arc<DiscoveryRequest>, files: &Files) -> Result<(), String> {
        match self {
            Self::Exchange(guest) => guest
                .request(&request.json, files)
                .await
                .map_err(|error| format!("the request cannot be given to the guest: {error}")),
            Self::Component(guest) => {
                guest.request(request).await;
                Ok(())
            }
        }
    }

    /// Brings the user's files up to date: `old` is what the guest has.
    pub(crate) fn update_files(&self, old: &Files, new: &Files) -> Result<(), String> {
        match self {
            Self::Exchange(guest) => guest
                .update_files(old, new)
                .map_err(|error| format!("a file cannot be handed on to the guest: {error}")),
            Self::Component(_) => Ok(()),
        }
    }

    /// Follows what the guest does: `answers` counts what there is to take.
    pub(crate) fn progress(&self) -> Option<watch::Receiver<Progress>> {
        match self {
            Self::Exchange(guest) => guest.progress(),
            Self::Component(guest) => Some(guest.progress()),
        }
    }

    /// Takes what the guest said, if it said something since.
    pub(crate) fn take_answer(&self) -> Taken {
        match self {
            Self::Exchange(guest) => guest.take_answer(),
            Self::Component(guest) => guest.take_answer(),
        }
    }

    /// Resolves with how the guest ended. May be called again.
    pub(crate) async fn ended(&self) -> Ended {
        match self {
            Self::Exchange(guest) => Ended::Guest(guest.outcome().await),
            Self::Component(guest) => guest.ended().await,
        }
    }
}
