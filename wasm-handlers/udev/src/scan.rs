//! Which devices match.

use crate::Matching;
use crate::pattern::{Pattern, is_glob_of};
use crate::rule::{Field, Match, Rule};
use crate::sysfs::{Device, Devices};
use akri_handler::Error;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a rule found: a device that has a file in /dev, or has none above it that has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    pub(crate) devpath: String,
    pub(crate) devnode: Option<String>,
}

/// What all rules find, by path.
pub(crate) fn find(rules: &[Rule], matching: Matching) -> Result<BTreeSet<Found>, Error> {
    // Without /sys there is nothing to be found, which is not the same as no devices.
    let cannot = |error| Error::Unavailable(format!("/sys cannot be read: {error}; is it mounted?"));
    if akri_handler::fs::list("/sys").map_err(cannot)?.is_empty() {
        return Err(Error::Unavailable("/sys is empty; is it mounted?".to_owned()));
    }
    let devices = Devices::default();
    let mut lists = BTreeMap::new();
    let mut found = BTreeSet::new();
    for rule in rules {
        let wanted = match rule.subsystems(matching) {
            Some(names) => names.into_iter().map(Some).collect(),
            None => vec![None],
        };
        for subsystem in wanted {
            let listed = match lists.entry(subsystem) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(devices.of(subsystem).map_err(cannot)?),
            };
            for device in listed.iter() {
                if matches(rule, device, &devices, matching) {
                    found.insert(with_devnode(device, &devices));
                }
            }
        }
    }
    Ok(found)
}

/// A device without a file in /dev is the nearest one above that has one.
fn with_devnode(device: &Rc<Device>, devices: &Devices) -> Found {
    let mut next = Some(device.clone());
    while let Some(device) = next {
        if let Some(devnode) = device.devnode() {
            return Found { devpath: device.devpath.clone(), devnode: Some(devnode.to_owned()) };
        }
        next = devices.parent(&device);
    }
    Found { devpath: device.devpath.clone(), devnode: None }
}

fn matches(rule: &Rule, device: &Rc<Device>, devices: &Devices, matching: Matching) -> bool {
    match matching {
        Matching::Udev => matches_udev(rule, device, devices),
        Matching::Native => matches_native(rule, device, devices),
    }
}

/// All matches hold; those of devices above hold for one and the same, the device itself included. A match with `!=` holds if
/// the one with `==` does not; among devices above, for none of them.
fn matches_udev(rule: &Rule, device: &Rc<Device>, devices: &Devices) -> bool {
    let holds = |of: &Match, device: &Device| {
        let is_of = if takes_expressions(of) { Pattern::is_of } else { Pattern::is_glob_of };
        let mut values = values(&of.field, device);
        match of.field {
            // What is not there is empty.
            Field::Driver | Field::Property(_) if values.is_empty() => values.push(String::new()),
            // Some attributes are filled up with blanks.
            Field::Attribute(_) => values.extend(values.first().map(|value| value.trim_end().to_owned())),
            _ => {}
        }
        values.iter().any(|value| is_of(&of.pattern, value))
    };
    let (above, own): (Vec<_>, Vec<_>) = rule.0.iter().partition(|of| of.ancestors);
    if !own.iter().all(|of| holds(of, device) != of.negated) {
        return false;
    }
    let (not, wanted): (Vec<_>, Vec<_>) = above.into_iter().partition(|of| of.negated);
    let line = || std::iter::successors(Some(device.clone()), |device| devices.parent(device));
    let has_one = wanted.is_empty() || line().any(|device| wanted.iter().all(|of| holds(of, &device)));
    has_one && (not.is_empty() || line().all(|device| !not.iter().any(|of| holds(of, &device))))
}

/// Akri's own handler takes these values for regular expressions. They are globs here, and those as well: what somebody wrote for
/// that handler finds no less, and keeps nothing that it was to leave out.
fn takes_expressions(of: &Match) -> bool {
    match of.field {
        Field::Driver => true,
        Field::Attribute(_) | Field::Subsystem => of.ancestors,
        Field::Devpath | Field::Kernel | Field::Tag | Field::Property(_) => of.ancestors || of.negated,
    }
}

/// As libudev's enumerator and Akri's own handler do it: of several names, subsystems and properties with `==` one is enough,
/// those are globs without alternatives, and DEVPATH is not looked at; the others are expressions for the whole value.
fn matches_native(rule: &Rule, device: &Rc<Device>, devices: &Devices) -> bool {
    let glob = |of: &Match| values(&of.field, device).iter().any(|value| of.pattern.is_single_glob_of(value));
    let expression =
        |of: &Match, device: &Device| values(&of.field, device).iter().any(|value| of.pattern.is_regex_of(value));
    let any_of = |wanted: fn(&Field) -> bool| {
        let mut same = rule.0.iter().filter(|of| !of.ancestors && !of.negated && wanted(&of.field)).peekable();
        same.peek().is_none()
            || same.any(|of| match &of.field {
                // Its key is a glob, too.
                Field::Property(key) => {
                    let mut properties = device.properties().iter();
                    properties.any(|(name, value)| is_glob_of(key, name) && of.pattern.is_single_glob_of(value))
                }
                _ => glob(of),
            })
    };
    let alternatives: [fn(&Field) -> bool; 3] = [
        |field| *field == Field::Kernel,
        |field| *field == Field::Subsystem,
        |field| matches!(field, Field::Property(_)),
    ];
    let each = rule.0.iter().all(|of| {
        let line = || std::iter::successors(Some(device.clone()), |device| devices.parent(device));
        match (&of.field, of.ancestors, of.negated) {
            (_, true, negated) => line().any(|device| expression(of, &device)) != negated,
            (Field::Devpath | Field::Kernel | Field::Subsystem | Field::Property(_), false, false) => true,
            (Field::Attribute(_) | Field::Tag, false, false) => glob(of),
            (Field::Attribute(_) | Field::Subsystem, false, true) => !glob(of),
            (_, false, negated) => expression(of, device) != negated,
        }
    });
    each && alternatives.into_iter().all(any_of)
}

/// The values of a device that a match looks at; of a driver or property that is not there none.
fn values(field: &Field, device: &Device) -> Vec<String> {
    match field {
        Field::Devpath => vec![device.devpath.clone()],
        Field::Kernel => vec![device.kernel()],
        Field::Subsystem => device.subsystem().map(str::to_owned).into_iter().collect(),
        Field::Driver => device.driver().map(str::to_owned).into_iter().collect(),
        Field::Tag => device.tags().to_vec(),
        Field::Attribute(name) => device.attribute(name).into_iter().collect(),
        Field::Property(name) => device.properties().get(name).cloned().into_iter().collect(),
    }
}
