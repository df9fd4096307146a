//! A broker: reads the value of a node of the OPC UA server that it was given, and prints a line for each.
//!
//! # Flow
//! Variables -> URL and [`node::NodeId`] -> a [`session::Session`], again with growing pauses when it ends -> reads -> lines.

mod node;
mod session;
mod value;

use node::NodeId;
use session::Session;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// As Akri names the device of an OPC UA discovery handler.
const URL: &str = "OPCUA_DISCOVERY_URL";
/// What is read, as OPC UA writes it; or as Akri's own broker has it, in two.
const NODE: &str = "OPCUA_NODE";
const IDENTIFIER: &str = "IDENTIFIER";
const NAMESPACE: &str = "NAMESPACE_INDEX";
/// Seconds between two reads.
const INTERVAL: &str = "OPCUA_INTERVAL";

/// Letters of a URL that are shown.
const MOST_SHOWN: usize = 256;
/// Pauses before a server is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

struct Settings {
    url: String,
    /// The same as it is shown.
    name: String,
    node: NodeId,
    interval: Duration,
}

fn settings() -> Result<Settings, String> {
    let url = broker::device(URL)?;
    let node = match (broker::variable(NODE), broker::variable(IDENTIFIER)) {
        (Some(text), _) => text.parse().map_err(|error| format!("{NODE}={text:?}: {error}"))?,
        (None, Some(identifier)) => {
            let namespace = broker::variable(NAMESPACE).unwrap_or_else(|| "0".to_owned());
            let number = namespace.parse().map_err(|_| format!("{NAMESPACE}={namespace:?}: expected 0 to 65535"))?;
            NodeId::named(number, &identifier)
        }
        (None, None) => {
            return Err(format!(
                "no {NODE} in the environment: which node is to be read? As {NODE}=ns=2;s=Temperature"
            ));
        }
    };
    let name = broker::line(&url, MOST_SHOWN);
    Ok(Settings { url, name, node, interval: broker::interval(INTERVAL, Duration::from_secs(5))? })
}

/// Reads until the session ends; why it did.
fn read_on(settings: &Settings, pause: &mut Duration) -> String {
    let mut session = None;
    loop {
        let started = Instant::now();
        // Another session before the one that there is comes to its end.
        let fresh = session.take().filter(|session: &Session| !session.is_due());
        let mut current = match fresh.map_or_else(|| Session::open(&settings.url, settings.interval), Ok) {
            Ok(session) => session,
            Err(why) => return why,
        };
        match current.read(&settings.node) {
            Ok(value) => println!("{} {} = {value}", settings.name, settings.node),
            Err(why) => return why,
        }
        *pause = PAUSES.0;
        session = Some(current);
        std::thread::sleep(settings.interval.saturating_sub(started.elapsed()));
    }
}

fn main() -> ExitCode {
    let Some(settings) = broker::begin(settings()) else { return ExitCode::FAILURE };
    let mut pause = PAUSES.0;
    loop {
        let why = read_on(&settings, &mut pause);
        eprintln!("{}: {why}; once more in {} s", settings.name, pause.as_secs());
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}
