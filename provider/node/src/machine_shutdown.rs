//! The machine goes down: its pods end in time and in order, as on a kubelet (graceful node shutdown).
//!
//! # Flow
//! 1. The node has logind wait with a shutdown of the machine, and hears of one that begins.
//! 2. Its Ready condition says so, and it takes no more pods.
//! 3. Its pods end, those of the lowest priority first, each in its grace period and that of its group; they are Failed, reason
//!    `Terminated`, so that their controllers make others elsewhere.
//! 4. The shutdown goes on. If it is called off instead, the node is Ready again.

use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::services::Services;
use crate::status::{DISRUPTION_TARGET, is_final};
use crate::termination::StopReason;
use akri_krustlet_host::BackOff;
use akri_krustlet_host::logind::Logind;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why the pods end, in a kubelet's words.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Pauses while there is no bus.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How long the API server may take to be told how the pods ended, and at most this part of logind's patience.
const TELL: (Duration, u32) = (Duration::from_secs(3), 5);
/// What a group takes besides its period.
const RESERVE: Duration = Duration::from_millis(200);

/// How long pods may take to end when the machine goes down, by their priority: each group is of the pods of its priority and more,
/// up to the next. Empty for a node that does not care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownPeriods(Vec<(i32, Duration)>);

impl ShutdownPeriods {
    /// `all` for all pods, of which the last part, `critical`, is for those that keep a cluster going.
    pub fn of_all(all: Duration, critical: Duration) -> Result<Self, String> {
        if critical > all {
            return Err(format!(
                "critical pods have {} s of the {} s of all: expected no more than all",
                critical.as_secs(),
                all.as_secs()
            ));
        }
        let groups = [(0, all - critical), (crate::eviction::CRITICAL, critical)];
        Ok(if all.is_zero() { Self::default() } else { Self(groups.to_vec()) })
    }

    /// True for a node that does not care.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of all groups together.
    pub fn total(&self) -> Duration {
        self.0.iter().map(|(_, period)| *period).sum()
    }

    /// How long all of it takes at most, if logind is so patient.
    fn all_of_it(&self, patience: Duration) -> Duration {
        self.total() + self.besides(patience)
    }

    /// What it takes besides the periods.
    fn besides(&self, patience: Duration) -> Duration {
        RESERVE * u32::try_from(self.0.len() + 1).unwrap_or(u32::MAX) + tell(patience)
    }

    /// Each less, in proportion, so that they are no more together.
    fn within(&self, most: Duration) -> Self {
        let total = self.total();
        if total <= most {
            return self.clone();
        }
        let part = |period: Duration| period.mul_f64(most.as_secs_f64() / total.as_secs_f64());
        Self(self.0.iter().map(|(priority, period)| (*priority, part(*period))).collect())
    }

    /// The group of a priority: that of the highest priority which is not above it, else the lowest.
    fn group(&self, priority: i32) -> usize {
        self.0.iter().rposition(|(lowest, _)| *lowest <= priority).unwrap_or(0)
    }
}

impl std::str::FromStr for ShutdownPeriods {
    type Err = String;

    /// `PRIORITY=SECONDS,...`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut groups = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let pair = part
                .split_once('=')
                .and_then(|(priority, seconds)| Some((priority.parse().ok()?, seconds.parse().ok()?)));
            let (priority, seconds) =
                pair.ok_or_else(|| format!("{part}: expected PRIORITY=SECONDS, such as 100000=10"))?;
            if groups.iter().any(|(other, _)| *other == priority) {
                return Err(format!("{part}: priority {priority} has a period already"));
            }
            groups.push((priority, Duration::from_secs(seconds)));
        }
        groups.sort_unstable();
        Ok(Self(groups))
    }
}

/// How long the API server may take.
fn tell(patience: Duration) -> Duration {
    TELL.0.min(patience / TELL.1)
}

/// Follows logind until `shutdown`, and ends the node's pods before the machine goes down.
pub async fn follow(services: Arc<Services>, periods: ShutdownPeriods, shutdown: CancellationToken) {
    let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
    let mut is_told = false;
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = follow_once(&services, &periods, &mut is_told, &mut back_off) => ended,
        };
        if let Err(error) = ended
            && !std::mem::replace(&mut is_told, true)
        {
            tracing::warn!(
                "systemd-logind cannot be asked to wait with a shutdown of the machine: {error}; pods end with the machine until it can (tried again)"
            );
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(back_off.pause()) => {}
        }
    }
}

async fn follow_once(
    services: &Services,
    periods: &ShutdownPeriods,
    is_told: &mut bool,
    back_off: &mut BackOff,
) -> Result<(), String> {
    let mut logind = Logind::connect().await?;
    let patience = logind.patience().await?;
    let why = "its pods end in time";
    let mut inhibitor = Some(logind.inhibit("akri-krustlet", why).await?);
    *is_told = false;
    back_off.reset();
    tracing::info!(patience = ?patience, "a shutdown of the machine waits for the pods");
    if periods.all_of_it(patience) > patience {
        tracing::warn!(
            "pods are to have {} s when the machine goes down, and systemd-logind waits for {} s: set InhibitDelayMaxSec={} in /etc/systemd/logind.conf.d/akri-krustlet.conf; until then each has a part of its period",
            periods.total().as_secs(),
            patience.as_secs(),
            (periods.total() + TELL.0).as_secs() + 5
        );
    }
    // It may have been told while nobody listened.
    let mut news = logind.is_going_down().await.ok().filter(|begins| *begins != *services.machine_goes_down.borrow());
    loop {
        let begins = match news.take() {
            Some(begins) => begins,
            None => match logind.next().await {
                Some(begins) => begins,
                None => return Err("the system bus is gone".to_owned()),
            },
        };
        services.machine_goes_down.send_replace(begins);
        let what = if begins { "event" } else { "cancellation" };
        let message = format!("Shutdown manager detected shutdown {what}");
        services.events.node(&services.node.name, EventType::Normal, "NodeShutdown", message);
        if begins {
            tracing::warn!("the machine goes down; the node's pods end");
            end_pods(services, &periods.within(patience.saturating_sub(periods.besides(patience))), tell(patience))
                .await;
            // The machine need not wait any longer.
            inhibitor = None;
        } else {
            tracing::info!("the shutdown of the machine is called off");
            if inhibitor.is_none() {
                inhibitor = Some(logind.inhibit("akri-krustlet", why).await?);
            }
        }
    }
}

/// Ends the pods, one group after the other.
async fn end_pods(services: &Services, periods: &ShutdownPeriods, tell: Duration) {
    let runs = |context: &Arc<PodContext>| !is_final(&context.reporter.current());
    let pods: Vec<_> = services.pods.all().into_iter().filter(runs).collect();
    for (number, (_, period)) in periods.0.iter().enumerate() {
        let of_group = pods
            .iter()
            .filter(|context| periods.group(context.pod.spec().priority.unwrap_or(0)) == number)
            .collect::<Vec<_>>();
        let deadline = Instant::now() + *period;
        for context in &of_group {
            tracing::info!(pod = context.pod.key(), "pod ends with the machine");
            context.reporter.set_condition(DISRUPTION_TARGET, true, "TerminationByKubelet", MESSAGE);
            context.termination.stop(context.pod.grace_period().min(*period), StopReason::NodeShutdown);
        }
        let ended = futures::future::join_all(of_group.iter().map(|context| context.reporter.ended()));
        if tokio::time::timeout_at(deadline + RESERVE, ended).await.is_err() {
            tracing::warn!("some pods did not end in their {} s", period.as_secs());
        }
    }
    let told = async {
        while !services.sink.is_told() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(tell, told).await.is_err() {
        tracing::warn!("the API server is not told yet how the pods ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_the_period_of_their_priority() {
        let seconds = Duration::from_secs;
        let periods: ShutdownPeriods = "100=10,-5=20,2000000000=5".parse().unwrap();
        assert_eq!(periods.total(), seconds(35));
        for (priority, group) in [(-10, 0), (-5, 0), (99, 0), (100, 1), (1_999_999_999, 1), (2_000_001_000, 2)] {
            assert_eq!(periods.group(priority), group, "{priority}");
        }
        let shorter = periods.within(seconds(7));
        assert_eq!(shorter.0, [(-5, seconds(4)), (100, seconds(2)), (2_000_000_000, seconds(1))]);
        assert_eq!(periods.within(seconds(35)), periods);
        let of_all = ShutdownPeriods::of_all(seconds(30), seconds(10)).unwrap();
        assert_eq!(of_all, "0=20,2000000000=10".parse().unwrap());
        assert!(ShutdownPeriods::of_all(seconds(0), seconds(0)).unwrap().is_empty());
        assert!(
            ShutdownPeriods::of_all(seconds(5), seconds(10))
                .unwrap_err()
                .contains("critical pods have 10 s of the 5 s")
        );
        for (text, what) in [("1", "PRIORITY=SECONDS"), ("1=2,1=3", "already"), ("a=1", "PRIORITY=SECONDS")] {
            assert!(text.parse::<ShutdownPeriods>().unwrap_err().contains(what));
        }
    }
}
