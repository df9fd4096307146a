//! A test guest that behaves as the debugEcho module of 2021 was measured to: it marks itself available when it starts,
//! polls every five seconds, answers its first request and then only when the availability changes, and overwrites
//! `out.out` in place. It needs its exchange directory at the default path.

use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

const AVAILABILITY: &str = "/tmp/wde-dir/debug-echo-availability.txt";

fn main() {
    fs::write(AVAILABILITY, "ONLINE").expect("the exchange directory is writable");
    println!("polling-echo is up");
    let mut answered = None;
    loop {
        std::thread::sleep(Duration::from_secs(5));
        let Ok(request) = fs::read_to_string("/tmp/wde-dir/in.in") else {
            println!("no input yet");
            continue;
        };
        let request: Value = serde_json::from_str(&request).expect("the input is JSON");
        let offline = fs::read_to_string(AVAILABILITY).unwrap_or_default().contains("OFFLINE");
        if answered == Some(offline) {
            continue;
        }
        answered = Some(offline);
        let descriptions = request["descriptions"].as_array().filter(|_| !offline).cloned().unwrap_or_default();
        let devices: Vec<_> = descriptions
            .iter()
            .map(|description| {
                json!({
                    "id": description, "properties": { "DEBUG_ECHO_DESCRIPTION": description },
                    "mounts": [], "device_specs": [],
                })
            })
            .collect();
        fs::write("/tmp/wde-dir/out.out", json!({ "devices": devices }).to_string()).expect("the output is written");
    }
}
