//! Akri's debugEcho discovery handler: every description of the request is a device, unless the availability file says
//! OFFLINE.
//!
//! It speaks the exchange contract: the request is the file `in.in` in the exchange directory, the answer `out.out`. It
//! looks at its files, answers if the answer has changed, and sleeps. A node that ends sleeps when a file changes says so
//! with `DISCOVERY_HANDLER_WAKES`; elsewhere (the gRPC proxy of 2021) it polls.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The environment variable that brokers read.
const DESCRIPTION: &str = "DEBUG_ECHO_DESCRIPTION";
const AVAILABILITY_FILE: &str = "debug-echo-availability.txt";
const POLL_INTERVAL: Duration = Duration::from_secs(4);
const UNTIL_WOKEN: Duration = Duration::from_secs(24 * 3600);

#[derive(Deserialize)]
struct Details {
    descriptions: Vec<Text>,
}

/// A text, which need not be quoted in the Configuration: `10` is one, too.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Box::<RawValue>::deserialize(deserializer)?;
        let written = written.get();
        match written.as_bytes().first() {
            Some(b'"') => serde_json::from_str(written).map(Self).map_err(serde::de::Error::custom),
            Some(b'[' | b'{') => Err(serde::de::Error::custom(format!("{written} is no text"))),
            _ => Ok(Self(written.to_owned())),
        }
    }
}

fn main() {
    let exchange = Exchange::from_environment();
    println!("debugEcho: waiting for a request in {}", exchange.directory.display());
    let interval = match std::env::var_os("DISCOVERY_HANDLER_WAKES") {
        Some(_) => UNTIL_WOKEN,
        None => POLL_INTERVAL,
    };
    let mut last = None;
    loop {
        if let Some(request) = exchange.request() {
            let answer = answer(&request, exchange.is_offline());
            if last.as_ref() != Some(&(request.clone(), answer.clone())) {
                // Printed first: whoever asked may hang up once it has the answer.
                println!("debugEcho: {answer}");
                match exchange.answer(&answer) {
                    Ok(()) => last = Some((request, answer)),
                    Err(error) => eprintln!("debugEcho: cannot write the answer, trying again later: {error}"),
                }
            }
        }
        std::thread::sleep(interval);
    }
}

fn answer(request: &str, offline: bool) -> Value {
    let details: Details = match serde_json::from_str(request) {
        Ok(details) => details,
        Err(error) => {
            let reason = format!("debugEcho needs `descriptions`, a list of strings: {error}");
            return json!({ "error": { "invalid_details": reason } });
        }
    };
    let descriptions = if offline { Vec::new() } else { details.descriptions };
    let devices: Vec<Value> = descriptions
        .into_iter()
        .map(|Text(description)| {
            json!({
                "id": description,
                "properties": { DESCRIPTION: description },
                "mounts": [],
                "device_specs": [],
            })
        })
        .collect();
    json!({ "devices": devices })
}

struct Exchange {
    directory: PathBuf,
}

impl Exchange {
    fn from_environment() -> Self {
        let directory = std::env::var_os("DISCOVERY_HANDLER_EXCHANGE_DIRECTORY");
        Self { directory: directory.map_or_else(|| PathBuf::from("/tmp/wde-dir"), PathBuf::from) }
    }

    fn request(&self) -> Option<String> {
        fs::read_to_string(self.directory.join("in.in")).ok()
    }

    /// An availability file that cannot be read counts as online.
    fn is_offline(&self) -> bool {
        fs::read_to_string(self.directory.join(AVAILABILITY_FILE)).is_ok_and(|text| text.contains("OFFLINE"))
    }

    /// Appears complete or not at all.
    fn answer(&self, answer: &Value) -> std::io::Result<()> {
        let unfinished = self.directory.join("out.tmp");
        fs::write(&unfinished, answer.to_string())?;
        fs::rename(unfinished, self.directory.join("out.out"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_become_devices_unless_offline() {
        let request = r#"{"descriptions":["foo0","foo1"],"other":1}"#;
        let online = answer(request, false);
        assert_eq!(online["devices"][1]["id"], "foo1");
        assert_eq!(online["devices"][1]["properties"][DESCRIPTION], "foo1");
        let plain = answer(r#"{"descriptions":[10,5.10,1e3,true,null,"no"]}"#, false);
        let ids: Vec<_> =
            plain["devices"].as_array().unwrap().iter().map(|device| device["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["10", "5.10", "1e3", "true", "null", "no"]);
        assert_eq!(answer(request, true), json!({ "devices": [] }));
        assert_eq!(answer(r#"{"descriptions":[]}"#, false), json!({ "devices": [] }));
    }

    #[test]
    fn bad_details_are_named() {
        for request in ["{}", r#"{"descriptions":[[1]]}"#, r#"{"descriptions":"foo0"}"#, "\"\"", "[]"] {
            let reason = answer(request, true)["error"]["invalid_details"].as_str().map(str::to_owned);
            assert!(reason.is_some_and(|reason| reason.contains("descriptions")), "{request}");
        }
    }
}
