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

/// Since 1970-01-01, as the machine's clock has it; in a test, that time and the time that has passed.
pub fn wall_clock() -> Duration {
    #[cfg(target_family = "wasm")]
    {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
    #[cfg(not(target_family = "wasm"))]
    crate::fake::wall_clock()
}
