//! systemd-logind: to hear before the machine goes down, and to have it wait for a moment.

use futures::StreamExt as _;
use std::time::Duration;
use zbus::OwnedFd;

/// As systemd documents it (org.freedesktop.login1(5)).
#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> zbus::Result<u64>;
}

/// The machine's logind.
#[derive(Debug)]
pub struct Logind {
    manager: ManagerProxy<'static>,
    signals: PrepareForShutdownStream,
}

/// As long as it lives, the machine does not go down, or not before logind's patience ends.
#[derive(Debug)]
pub struct Inhibitor(#[expect(dead_code, reason = "it is held")] OwnedFd);

impl Logind {
    /// Asks the system bus (`DBUS_SYSTEM_BUS_ADDRESS`, else the usual socket) for it.
    pub async fn connect() -> zbus::Result<Self> {
        let connection = zbus::Connection::system().await?;
        let manager = ManagerProxy::new(&connection).await?;
        let signals = manager.receive_prepare_for_shutdown().await?;
        Ok(Self { manager, signals })
    }

    /// Has a shutdown wait.
    pub async fn inhibit(&self, who: &str, why: &str) -> zbus::Result<Inhibitor> {
        Ok(Inhibitor(self.manager.inhibit("shutdown", who, why, "delay").await?))
    }

    /// How long it waits at most.
    pub async fn patience(&self) -> zbus::Result<Duration> {
        Ok(Duration::from_micros(self.manager.inhibit_delay_max().await?))
    }

    /// Resolves with true when the machine is about to go down, with false when it is not to after all; `None` when the bus is gone.
    pub async fn next(&mut self) -> Option<bool> {
        loop {
            let signal = self.signals.next().await?;
            if let Ok(arguments) = signal.args() {
                return Some(arguments.start);
            }
        }
    }
}
