//! Why an image cannot be had from its registry.

use crate::layout::LayoutError;
use crate::policy::PolicyError;

/// Why an image cannot be had from its registry.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Wrong credentials, or none where some are needed.
    #[error(
        "{registry} refuses {credentials}: give the pod a matching imagePullSecret, or the node a credentials file; {message}"
    )]
    Unauthorized {
        /// The registry.
        registry: String,
        /// Which credentials were tried, in words.
        credentials: &'static str,
        /// What the registry said.
        message: String,
    },
    /// The registry does not have it.
    #[error("{registry} has no such image: check the name and the tag")]
    NotFound {
        /// The registry.
        registry: String,
    },
    /// It may work later: no connection, a time-out, 429, 5xx, a connection that broke off.
    #[error("{registry}: {message}")]
    Temporary {
        /// The registry.
        registry: String,
        /// What happened.
        message: String,
    },
    /// What came is not what the digest names.
    #[error("{registry} sent {actual} for {expected}: the image is damaged there or on the way")]
    Digest {
        /// The registry.
        registry: String,
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// Larger than any module may be.
    #[error("its layer has {size} bytes, a module may have {limit}")]
    TooLarge {
        /// What the manifest says.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// It holds no module for this node.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file is there and is something else.
    #[error("its module is not WebAssembly: it begins with {0}")]
    NotWasm(String),
    /// The registry broke the protocol.
    #[error("{registry}: {message}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What was wrong.
        message: String,
    },
    /// The node's operator does not let it run.
    #[error(transparent)]
    Policy(Box<PolicyError>),
    /// The node's disk.
    #[error("cannot store the image: {0}")]
    Store(#[from] std::io::Error),
}

impl PullError {
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Self::Temporary { .. })
    }
}
