//! Spans: what a pod's start and a handler's call consist of, for a collector of traces (OpenTelemetry).
//!
//! They are of a target of their own and of the lowest level, so that logs do not have them and nobody pays for them unless they are exported.

use std::fmt::Display;
use tracing::{Instrument as _, Span};

/// Their target.
pub const TARGET: &str = "akri_krustlet::spans";

/// A span by its name, with fields as those of `tracing`. Its parent is the span in which it is made, or `parent: &span`.
#[macro_export]
macro_rules! span {
    ($($arguments:tt)*) => {
        $crate::spans::tracing::trace_span!(
            target: $crate::spans::TARGET, $($arguments)*,
            otel.status_code = $crate::spans::tracing::field::Empty,
            otel.status_description = $crate::spans::tracing::field::Empty
        )
    };
}

#[doc(hidden)]
pub use tracing;

/// Longest description of what failed, in bytes: a guest may have its part in it.
const MOST: usize = 1024;

/// Work that is told by a span, and that it failed if it does.
pub async fn told<T, E: Display>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let done = work.instrument(span.clone()).await;
    if let Err(error) = &done {
        fail(&span, error);
    }
    done
}

/// What the span is of failed.
pub fn fail(span: &Span, error: &dyn Display) {
    if !span.is_disabled() {
        let mut error = error.to_string();
        error.truncate(error.floor_char_boundary(MOST));
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", error);
    }
}
