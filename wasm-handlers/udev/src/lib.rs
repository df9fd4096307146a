//! Akri's udev discovery handler: devices of the machine that match udev rules.
//!
//! # Flow
//! Details -> [`rule`]s, read once -> [`scan`] of /sys and /run/udev/data -> [`group`]s -> devices. What comes, goes or changes is
//! told by uevents of the kernel and by udevd's database; then /sys is read again, twice a second at most.

mod group;
mod pattern;
mod rule;
mod scan;
mod sysfs;

use akri_handler::uevents::Monitor;
use akri_handler::watch::Watch;
use akri_handler::{Device, Error, Handler, Properties, Request, Step, Text, handler, time};
use rule::Rule;
use std::time::Duration;

/// The least time between two scans.
const SCANS: Duration = Duration::from_millis(500);
/// Attributes change without a uevent: rules that look at them are checked again after that time.
const ATTRIBUTES: Duration = Duration::from_secs(60);
/// Where udevd keeps what it knows.
const DATABASE: &str = "/run/udev/data";

/// As Akri's own handler takes them.
const PERMISSIONS: [&str; 7] = ["r", "w", "m", "rw", "rm", "rwm", "wm"];

/// What the node checks before it asks.
const SCHEMA: &str = r#"{
    "type": "object",
    "required": ["udevRules"],
    "properties": {
        "udevRules": {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}},
        "groupRecursive": {"type": "boolean"},
        "permissions": {"enum": ["r", "w", "m", "rw", "rm", "rwm", "wm"]},
        "matching": {"enum": ["udev", "native"]}
    }
}"#;

/// `discoveryDetails`, with the keys of Akri's own handler and one more.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    udev_rules: Vec<Text>,
    #[serde(default)]
    group_recursive: bool,
    #[serde(default = "all_permissions")]
    permissions: String,
    #[serde(default)]
    matching: Matching,
}

fn all_permissions() -> String {
    "rwm".to_owned()
}

/// How the matches of one rule go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Matching {
    /// As udev(7) says, but for an attribute that is not there, which `!=` matches, and `!=` of devices above.
    #[default]
    Udev,
    /// As libudev's enumerator does it for Akri's own handler.
    Native,
}

struct Udev {
    rules: Vec<Rule>,
    matching: Matching,
    grouping: group::Grouping,
    monitor: Option<Monitor>,
    database: Option<Watch>,
    /// When /sys was read last.
    scanned: Option<Duration>,
    /// It is to be read again: something has happened.
    stale: bool,
    /// It was read for an event, and is read once more: udevd may not have finished.
    unsettled: bool,
    told: Option<Vec<Device>>,
    /// Why changes are not told.
    trouble: Option<String>,
}

impl Udev {
    /// Takes what has happened since; whether it may concern a rule.
    fn has_changed(&mut self) -> bool {
        let (events, lost) = self.monitor.as_ref().map(Monitor::take).unwrap_or_default();
        let (names, more) = self.database.as_ref().map(Watch::take).unwrap_or_default();
        if more {
            // It may have been made anew: what is followed is the one that has gone.
            self.database = None;
        }
        let concerns = |subsystem: &str| self.rules.iter().any(|rule| rule.may_concern(subsystem, self.matching));
        let entry_concerns = |name: &String| {
            // `+usb:1-1` and `n3` name their subsystems, `c81:0` and `b8:0` do not.
            let named = name.strip_prefix('+').and_then(|rest| rest.split(':').next());
            named.or(name.starts_with('n').then_some("net")).is_none_or(concerns)
        };
        lost > 0 || more || names.iter().any(entry_concerns) || events.iter().any(|event| concerns(&event.subsystem))
    }

    fn devices(&self) -> Result<Vec<Device>, Error> {
        let found = scan::find(&self.rules, self.matching)?;
        Ok(self.grouping.devices(found))
    }
}

impl Handler for Udev {
    const NAME: &'static str = "udev";
    const SHARED: bool = false;
    type Details = Details;

    fn schema() -> Option<String> {
        Some(SCHEMA.to_owned())
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        let Request { details, properties } = request;
        let rule = |(number, Text(text)): (usize, &Text)| {
            rule::parse(text).map_err(|error| Error::InvalidDetails(format!("udevRules[{number}] {text:?}: {error}")))
        };
        let rules = details.udev_rules.iter().enumerate().map(rule).collect::<Result<Vec<_>, _>>()?;
        let grouping = grouping(&details, &properties)?;
        let (monitor, trouble) = match Monitor::open(&subsystems(&rules, details.matching)) {
            Ok(monitor) => (Some(monitor), None),
            Err(error) => (None, Some(format!("changes are looked for every 10 s: {error}"))),
        };
        log::info!("udev: {} rules", rules.len());
        let (scanned, told) = (None, None);
        let matching = details.matching;
        Ok(Self {
            rules,
            matching,
            grouping,
            monitor,
            database: None,
            scanned,
            stale: true,
            unsettled: false,
            told,
            trouble,
        })
    }

    fn step(&mut self) -> Result<Step, Error> {
        let now = time::now();
        let is_event = self.has_changed();
        self.stale |= is_event;
        let since = self.scanned.map(|scanned| now.saturating_sub(scanned));
        let is_due = since.is_some_and(|since| since >= self.pause());
        if !self.stale && !self.unsettled && !is_due {
            return Ok(self.said(None, self.pause().saturating_sub(since.unwrap_or_default())));
        }
        if let Some(since) = since.filter(|since| *since < SCANS) {
            return Ok(self.said(None, SCANS - since));
        }
        if self.database.is_none() {
            // Before the scan, so that nothing is missed between the two. A machine without udevd has none.
            self.database = Watch::open(DATABASE).ok();
        }
        let devices = self.devices()?;
        (self.scanned, self.unsettled) = (Some(now), self.stale && self.told.is_some());
        self.stale = false;
        let pause = if self.unsettled { SCANS } else { self.pause() };
        if self.told.as_ref() == Some(&devices) {
            return Ok(self.said(None, pause));
        }
        log::info!("udev: {} devices", devices.len());
        self.told = Some(devices.clone());
        Ok(self.said(Some(devices), pause))
    }
}

impl Udev {
    /// Until /sys is read again though nothing has happened.
    fn pause(&self) -> Duration {
        match &self.trouble {
            // As Akri's own handler does.
            Some(_) => Duration::from_secs(10),
            None if self.rules.iter().any(Rule::looks_at_attributes) => ATTRIBUTES,
            None => Duration::MAX,
        }
    }

    fn said(&self, devices: Option<Vec<Device>>, pause: Duration) -> Step {
        let wake_after = (pause < Duration::from_secs(3600)).then_some(pause);
        Step { devices, wake_after, note: self.trouble.clone() }
    }
}

/// What to follow: what the rules name, if they do, so that a grant without it is noticed; else all that is granted.
fn subsystems(rules: &[Rule], matching: Matching) -> Vec<String> {
    let of = |rule: &Rule| {
        let named = rule.subsystems(matching).filter(|_| !rule.looks_above())?;
        Some(named.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let named = rules.iter().map(of).collect::<Option<Vec<_>>>().unwrap_or_default();
    let named: std::collections::BTreeSet<_> = named.into_iter().flatten().collect();
    named.into_iter().collect()
}

fn grouping(details: &Details, properties: &Properties) -> Result<group::Grouping, Error> {
    let text = |name: &str| {
        let value = properties.get(name)?.as_deref()?;
        Some(std::str::from_utf8(value).ok()?.trim().to_owned())
    };
    let permissions = akri_handler::Permissions::parse(&details.permissions);
    let permissions = permissions.filter(|_| PERMISSIONS.contains(&&*details.permissions));
    Ok(group::Grouping {
        recursive: details.group_recursive,
        permissions: permissions.ok_or_else(|| {
            let given = &details.permissions;
            Error::InvalidDetails(format!("permissions: {given:?} is none of {}", PERMISSIONS.join(", ")))
        })?,
        resource: text("devicePluginResourceName"),
        vfio: text("vfioPassthrough").is_some_and(|value| value.eq_ignore_ascii_case("true")),
    })
}

handler!(Udev);
akri_handler::needs! {
    uevents: ["*"],
    volumes: ["/sys"],
    // For rules with ENV and TAG.
    optional_volumes: ["/run/udev/data"],
    host_paths: ["/dev"],
}

#[cfg(test)]
mod tests;
