//! A broker: reads an attribute of the device that it was given in /sys, and prints a line when it changes. WASI has no device
//! nodes; what sensors, batteries and links tell is in /sys all the same (`temp1_input`, `capacity`, `carrier`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// As Akri names the device of a udev discovery handler: its place below /sys.
const DEVICE: &str = "UDEV_DEVPATH";
/// The attribute that is read.
const ATTRIBUTE: &str = "UDEV_ATTRIBUTE";
/// Seconds between two reads: /sys does not tell of changes.
const INTERVAL: &str = "UDEV_INTERVAL";

struct Wanted {
    file: PathBuf,
    name: String,
    interval: Duration,
}

fn wanted() -> Result<Wanted, String> {
    let get = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let device = get(DEVICE).ok_or_else(|| {
        format!("no {DEVICE} in the environment: this pod has no udev device; does it request one in its resources?")
    })?;
    let attribute = get(ATTRIBUTE).unwrap_or_else(|| "uevent".to_owned());
    let interval = get(INTERVAL).unwrap_or_else(|| "1".to_owned());
    let seconds = interval.parse().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("{INTERVAL}={interval:?}: expected seconds from 0.1 to 86400"))?;
    Ok(Wanted {
        file: PathBuf::from(format!("/sys{device}/{attribute}")),
        name: format!("{device} {attribute}"),
        interval: Duration::from_secs_f64(seconds),
    })
}

/// A text in one line, and nothing in it that a terminal takes for an order.
fn line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|letter| !letter.is_control()).collect()
}

fn main() -> ExitCode {
    let wanted = match wanted() {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let mut last = None;
    loop {
        // A device that is unplugged has no files; its pod is about to go.
        let said = std::fs::read_to_string(&wanted.file).map_err(|error| error.to_string());
        if last.as_ref() != Some(&said) {
            match &said {
                Ok(text) => println!("{} = {}", wanted.name, line(text)),
                Err(error) => eprintln!("{}: {error} (is /sys mounted, read-only?)", wanted.name),
            }
            last = Some(said);
        }
        std::thread::sleep(wanted.interval);
    }
}
