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

/// Pauses before a server is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

struct Wanted {
    url: String,
    node: NodeId,
    interval: Duration,
}

fn wanted() -> Result<Wanted, String> {
    let get = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let url = get(URL).ok_or_else(|| {
        format!("no {URL} in the environment: this pod has no OPC UA server; does it request one in its resources?")
    })?;
    let node = match (get(NODE), get(IDENTIFIER)) {
        (Some(text), _) => text.parse().map_err(|error| format!("{NODE}={text:?}: {error}"))?,
        (None, Some(identifier)) => {
            let namespace = get(NAMESPACE).unwrap_or_else(|| "0".to_owned());
            let number = namespace.parse().map_err(|_| format!("{NAMESPACE}={namespace:?}: expected 0 to 65535"))?;
            NodeId::named(number, &identifier)
        }
        (None, None) => {
            return Err(format!(
                "no {NODE} in the environment: which node is to be read? As {NODE}=ns=2;s=Temperature"
            ));
        }
    };
    let interval = get(INTERVAL).unwrap_or_else(|| "5".to_owned());
    let seconds = interval.parse().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
    let interval = seconds.ok_or_else(|| format!("{INTERVAL}={interval:?}: expected seconds from 0.1 to 86400"))?;
    Ok(Wanted { url, node, interval: Duration::from_secs_f64(interval) })
}

/// Reads until the session ends; why it did.
fn read_on(wanted: &Wanted, pause: &mut Duration) -> String {
    let mut session = match Session::open(&wanted.url) {
        Ok(session) => session,
        Err(why) => return why,
    };
    loop {
        let started = Instant::now();
        match session.read(&wanted.node) {
            Ok(value) => println!("{} {} = {value}", wanted.url, wanted.node),
            Err(why) => return why,
        }
        *pause = PAUSES.0;
        if session.is_due() {
            // A channel has its time; another one before that.
            session.close();
            match Session::open(&wanted.url) {
                Ok(other) => session = other,
                Err(why) => return why,
            }
        }
        std::thread::sleep(wanted.interval.saturating_sub(started.elapsed()));
    }
}

fn main() -> ExitCode {
    let wanted = match wanted() {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let mut pause = PAUSES.0;
    loop {
        let why = read_on(&wanted, &mut pause);
        eprintln!("{}: {why}; once more in {} s", wanted.url, pause.as_secs());
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}
