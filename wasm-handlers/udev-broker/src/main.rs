//! A broker: reads an attribute of the device that it was given in /sys, and prints a line when it changes. WASI has no device
//! nodes; what sensors, batteries and links tell is in /sys all the same (`temp1_input`, `capacity`, `operstate`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// As Akri names the device of a udev discovery handler: its place below /sys.
const DEVICE: &str = "UDEV_DEVPATH";
/// The attribute that is read.
const ATTRIBUTE: &str = "UDEV_ATTRIBUTE";
/// Seconds between two reads: /sys does not tell of changes.
const INTERVAL: &str = "UDEV_INTERVAL";

/// Letters of an attribute that are shown.
const MOST_SHOWN: usize = 4096;

struct Settings {
    file: PathBuf,
    name: String,
    interval: Duration,
}

fn settings() -> Result<Settings, String> {
    let device = broker::device(DEVICE)?;
    let attribute = broker::variable(ATTRIBUTE).unwrap_or_else(|| "uevent".to_owned());
    Ok(Settings {
        file: PathBuf::from(format!("/sys{device}/{attribute}")),
        name: format!("{device} {attribute}"),
        interval: broker::interval(INTERVAL, Duration::from_secs(1))?,
    })
}

fn read(file: &Path) -> Result<String, String> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(broker::line(&String::from_utf8_lossy(&bytes), MOST_SHOWN)),
        // As it is for a device that was unplugged; its pod is about to go.
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("{error} (does the pod mount /sys?)")),
        Err(error) => Err(error.to_string()),
    }
}

fn main() -> ExitCode {
    let Some(settings) = broker::begin(settings()) else { return ExitCode::FAILURE };
    let mut last = None;
    loop {
        let said = read(&settings.file);
        if last.as_ref() != Some(&said) {
            match &said {
                Ok(text) => println!("{} = {text}", settings.name),
                Err(error) => eprintln!("{}: {error}", settings.name),
            }
            last = Some(said);
        }
        std::thread::sleep(settings.interval);
    }
}
