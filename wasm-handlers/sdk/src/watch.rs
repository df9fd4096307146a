//! Changes of directories that the container mounts.

use crate::Error;

/// Follows what is in a directory. Each change makes the node ask for a step.
#[derive(Debug)]
pub struct Watch(inner::Watch);

impl Watch {
    /// Of what is in this directory, not in those below it.
    pub fn open(path: &str) -> Result<Self, Error> {
        inner::open(path).map(Self)
    }

    /// Names that changed since this was called last, and whether there were more: then look at all of it.
    pub fn take(&self) -> (Vec<String>, bool) {
        inner::take(&self.0)
    }
}

#[cfg(target_family = "wasm")]
mod inner {
    use crate::Error;
    use crate::bindings::akri::host::watch::{self, Denied};

    pub(super) type Watch = watch::Watch;

    pub(super) fn open(path: &str) -> Result<Watch, Error> {
        watch::Watch::open(path).map_err(|denied| {
            let why = match denied {
                Denied::NotPreopened => "it is in no volume of the container",
                Denied::NotADirectory => "it is no directory",
                Denied::TooMany => "the handler follows too many directories",
                Denied::Unavailable => "the node cannot, its log says why",
            };
            Error::Unavailable(format!("changes of {path}: {why}"))
        })
    }

    pub(super) fn take(watch: &Watch) -> (Vec<String>, bool) {
        let (names, lost) = watch.take();
        (names, lost > 0)
    }
}

#[cfg(not(target_family = "wasm"))]
use crate::fake::watch as inner;
