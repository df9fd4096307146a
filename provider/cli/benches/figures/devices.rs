//! Figures of the device plugin side: random events, without a node around it.

use crate::Row;
#[path = "../../../devices/tests/plugin/mod.rs"]
mod plugin;

const SEED: u64 = 20_261_124;

pub async fn measure() -> Row {
    eprintln!("random events of pods and device plugins ...");
    let outcome = plugin::random::run(SEED).await;
    Row {
        figure: "1,000 random pod and plugin events: devices given twice / lost",
        ours: format!("{} / {} (of {} grants)", outcome.twice, outcome.lost, outcome.allocated),
        native: "-".to_owned(),
        bar: "0 / 0",
        holds: Some(outcome.twice + outcome.lost == 0),
    }
}
