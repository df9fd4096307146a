//! Time; in a test, time that the test lets pass.

use std::time::Duration;

/// Since some moment before the handler was opened.
pub fn now() -> Duration {
    #[cfg(target_family = "wasm")]
    {
        thread_local! {
            static START: std::time::Instant = std::time::Instant::now();
        }
        START.with(std::time::Instant::elapsed)
    }
    #[cfg(not(target_family = "wasm"))]
    crate::fake::now()
}
