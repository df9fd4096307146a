//! The `log` crate's messages go to the container's log.

#[cfg(target_family = "wasm")]
mod host {
    use crate::bindings::akri::host::log::{Level, log as host_log};

    struct Logger;

    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let level = match record.level() {
                log::Level::Trace => Level::Trace,
                log::Level::Debug => Level::Debug,
                log::Level::Info => Level::Info,
                log::Level::Warn => Level::Warn,
                log::Level::Error => Level::Error,
            };
            host_log(level, &record.args().to_string());
        }

        fn flush(&self) {}
    }

    pub fn start() {
        let wanted = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
        if log::set_logger(&Logger).is_ok() {
            log::set_max_level(wanted.unwrap_or(log::LevelFilter::Info));
        }
    }
}

/// Messages of the level that `RUST_LOG` names, and above; `info` without it.
#[doc(hidden)]
pub fn start() {
    #[cfg(target_family = "wasm")]
    host::start();
}
