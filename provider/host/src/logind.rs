//! systemd-logind: to hear before the machine goes down, and to have it wait for a moment.

use futures::StreamExt as _;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
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

    #[zbus(property(emits_changed_signal = "false"))]
    fn preparing_for_shutdown(&self) -> zbus::Result<bool>;
}

/// How long the bus and logind may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The machine's logind.
#[derive(Debug)]
pub struct Logind {
    manager: ManagerProxy<'static>,
    /// What it told last, and the how manieth time.
    told: watch::Receiver<(u64, bool)>,
    _listener: AbortOnDropHandle<()>,
}

/// As long as it lives, the machine does not go down, or not before logind's patience ends.
#[derive(Debug)]
pub struct Inhibitor(#[expect(dead_code, reason = "it is held")] OwnedFd);

async fn answered<T>(asked: impl Future<Output = zbus::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

impl Logind {
    /// Asks the system bus (`DBUS_SYSTEM_BUS_ADDRESS`, else the usual socket) for it.
    pub async fn connect() -> Result<Self, String> {
        answered(async {
            let connection = zbus::Connection::system().await?;
            let manager = ManagerProxy::new(&connection).await?;
            let mut signals = manager.receive_prepare_for_shutdown().await?;
            let (sender, told) = watch::channel((0, false));
            // Always taken: anybody on the bus may send signals, and answers come behind those that wait.
            let listener = tokio::spawn(async move {
                while let Some(signal) = signals.next().await {
                    if let Ok(arguments) = signal.args() {
                        sender.send_modify(|told| *told = (told.0 + 1, arguments.start));
                    }
                }
            });
            Ok(Self { manager, told, _listener: AbortOnDropHandle::new(listener) })
        })
        .await
    }

    /// Has a shutdown wait.
    pub async fn inhibit(&self, who: &str, why: &str) -> Result<Inhibitor, String> {
        Ok(Inhibitor(answered(self.manager.inhibit("shutdown", who, why, "delay")).await?))
    }

    /// How long it waits at most.
    pub async fn patience(&self) -> Result<Duration, String> {
        Ok(Duration::from_micros(answered(self.manager.inhibit_delay_max()).await?))
    }

    /// Whether the machine is about to go down.
    pub async fn is_going_down(&self) -> Result<bool, String> {
        answered(self.manager.preparing_for_shutdown()).await
    }

    /// Resolves with true when the machine is about to go down, with false when it is not to after all; `None` when the bus is gone.
    pub async fn next(&mut self) -> Option<bool> {
        self.told.changed().await.ok()?;
        Some(self.told.borrow_and_update().1)
    }
}
