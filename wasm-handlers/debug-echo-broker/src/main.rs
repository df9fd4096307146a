//! A broker: the node gives it a device that the debugEcho handler found, as a variable of its environment.

use std::process::ExitCode;
use std::time::Duration;

const DEVICE: &str = "DEBUG_ECHO_DESCRIPTION";

fn main() -> ExitCode {
    let Ok(device) = std::env::var(DEVICE) else {
        eprintln!(
            "no {DEVICE} in the environment: this pod has no debugEcho device; does it request one in its resources?"
        );
        return ExitCode::FAILURE;
    };
    println!("Pod is running and using debugEcho device named: {device}");
    // A real broker would work with its device here.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
