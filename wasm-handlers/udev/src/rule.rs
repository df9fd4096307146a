//! A rule: matches of udev(7), `KEY=="value"` and `KEY!="value"`, with commas between.

use crate::Matching;
use crate::pattern::Pattern;
use std::fmt;

/// What of a device is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Devpath,
    Kernel,
    Subsystem,
    Driver,
    Tag,
    Attribute(String),
    Property(String),
}

/// One match.
#[derive(Debug)]
pub(crate) struct Match {
    pub(crate) field: Field,
    /// Of the device or of one above it (`KERNELS`, `ATTRS`, ...).
    pub(crate) ancestors: bool,
    /// `!=`
    pub(crate) negated: bool,
    pub(crate) pattern: Pattern,
}

#[derive(Debug)]
pub(crate) struct Rule(pub(crate) Vec<Match>);

/// Why a text is no rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RuleError {
    /// From 1, in letters.
    column: usize,
    what: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.what)
    }
}

/// Keys that udev has besides, and why they match no device that is there.
const OTHERS: [(&str, &str); 24] = [
    ("ACTION", "is about what happens, not about a device"),
    ("CONST", "is about the machine, not about a device"),
    ("SYSCTL", "is about the machine, not about a device"),
    ("NAME", "is given by rules, not matched"),
    ("SYMLINK", "cannot be matched here; ENV{DEVLINKS} has the links"),
    ("TEST", "cannot be matched here"),
    ("PROGRAM", "runs a program; discovery runs none"),
    ("RESULT", "is a program's; discovery runs none"),
    ("RUN", "runs a program; discovery runs none"),
    ("IMPORT", "is done by udevd, not by discovery"),
    ("OWNER", "is set by udevd, not by discovery"),
    ("GROUP", "is set by udevd, not by discovery"),
    ("MODE", "is set by udevd, not by discovery"),
    ("SECLABEL", "is set by udevd, not by discovery"),
    ("OPTIONS", "is set by udevd, not by discovery"),
    ("LABEL", "is for files of rules"),
    ("GOTO", "is for files of rules"),
    ("WAIT_FOR", "is for files of rules"),
    ("KERNEL_VERSION", "is about the machine, not about a device"),
    ("ARCH", "is about the machine, not about a device"),
    ("VIRT", "is about the machine, not about a device"),
    ("SYSFS", "is udev's old name; use ATTR"),
    ("BUS", "is udev's old name; use SUBSYSTEMS"),
    ("ID", "is udev's old name; use KERNELS"),
];

const KEYS: &str =
    "KERNEL, SUBSYSTEM, DRIVER, DEVPATH, TAG, ATTR{..}, ENV{..}, KERNELS, SUBSYSTEMS, DRIVERS, TAGS, ATTRS{..}";

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take(&mut self, token: &str) -> bool {
        let is_there = self.rest().starts_with(token);
        if is_there {
            self.at += token.len();
        }
        is_there
    }

    /// What comes before a letter, which is taken, too.
    fn until(&mut self, end: char) -> Option<&'a str> {
        let length = self.rest().find(end)?;
        let found = &self.rest()[..length];
        self.at += length + end.len_utf8();
        Some(found)
    }

    fn error<T>(&self, at: usize, what: impl Into<String>) -> Result<T, RuleError> {
        Err(RuleError { column: self.text[..at].chars().count() + 1, what: what.into() })
    }
}

pub(crate) fn parse(text: &str) -> Result<Rule, RuleError> {
    let mut reader = Reader { text, at: 0 };
    let mut matches = Vec::new();
    loop {
        reader.skip_blanks();
        if reader.rest().is_empty() {
            break;
        }
        matches.push(read_match(&mut reader)?);
        reader.skip_blanks();
        if !reader.take(",") && !reader.rest().is_empty() {
            return reader.error(reader.at, "expected a comma before the next match");
        }
    }
    if matches.is_empty() {
        return reader.error(
            0,
            format!("the rule is empty and would match every device; expected KEY==\"value\", with a KEY of {KEYS}"),
        );
    }
    Ok(Rule(matches))
}

fn read_match(reader: &mut Reader<'_>) -> Result<Match, RuleError> {
    let start = reader.at;
    let length = reader.rest().find(|letter: char| !letter.is_ascii_alphabetic() && letter != '_');
    let name = &reader.rest()[..length.unwrap_or(reader.rest().len())];
    reader.at += name.len();
    let mut key = None;
    if reader.take("{") {
        let at = reader.at;
        key = match reader.until('}') {
            Some("") => return reader.error(at, "the braces are empty"),
            Some(key) => Some((at, key.trim().to_owned())),
            None => return reader.error(at, "the brace is not closed"),
        };
    }
    let (field, ancestors) = match (name, key) {
        ("KERNEL", None) => (Field::Kernel, false),
        ("KERNELS", None) => (Field::Kernel, true),
        ("SUBSYSTEM", None) => (Field::Subsystem, false),
        ("SUBSYSTEMS", None) => (Field::Subsystem, true),
        ("DRIVER", None) => (Field::Driver, false),
        ("DRIVERS", None) => (Field::Driver, true),
        ("TAG", None) => (Field::Tag, false),
        ("TAGS", None) => (Field::Tag, true),
        ("DEVPATH", None) => (Field::Devpath, false),
        ("ENV", Some((_, key))) => (Field::Property(key), false),
        ("ATTR" | "ATTRS", Some((at, key))) => {
            let goes_up = key.starts_with('/') || key.split('/').any(|part| part == "..");
            if goes_up {
                return reader.error(at, format!("{key:?} leads out of the device's directory"));
            }
            (Field::Attribute(key), name == "ATTRS")
        }
        ("ENV" | "ATTR" | "ATTRS", None) => {
            return reader.error(start, format!("{name} needs a key in braces: {name}{{key}}==\"value\""));
        }
        ("", _) => return reader.error(start, format!("expected a key, one of {KEYS}")),
        (name, _) => match OTHERS.iter().find(|(other, _)| *other == name) {
            Some((_, why)) => return reader.error(start, format!("{name} {why}; the keys of discovery are {KEYS}")),
            None => return reader.error(start, format!("{name:?} is no key; those of discovery are {KEYS}")),
        },
    };
    reader.skip_blanks();
    let at = reader.at;
    let negated = match () {
        () if reader.take("==") => false,
        () if reader.take("!=") => true,
        () if ["=", "+=", "-=", ":="].iter().any(|operation| reader.rest().starts_with(operation)) => {
            return reader.error(at, "this sets a value; discovery only matches, with == or !=");
        }
        () => return reader.error(at, "expected == or !="),
    };
    reader.skip_blanks();
    let at = reader.at;
    if !reader.take("\"") {
        return reader.error(at, "expected a value in double quotes");
    }
    let Some(value) = reader.until('"') else { return reader.error(at, "the quotes are not closed") };
    Ok(Match { field, ancestors, negated, pattern: Pattern::new(value) })
}

impl Rule {
    /// Whether a device of this subsystem can be, or be below, what the rule finds.
    pub(crate) fn may_concern(&self, subsystem: &str, matching: Matching) -> bool {
        let named = self.subsystems(matching);
        // What a device above is can decide, too; and so can the children's parents.
        named.is_none_or(|named| named.contains(&subsystem) || self.looks_above())
    }

    /// The only subsystems that it finds devices of, if it names them.
    pub(crate) fn subsystems(&self, matching: Matching) -> Option<Vec<&str>> {
        let mut named = self.0.iter().filter(|of| of.field == Field::Subsystem && !of.ancestors && !of.negated);
        let first = named.next()?.pattern.literals()?;
        match matching {
            // Each of them has to match: the first ones are enough.
            Matching::Udev => Some(first),
            // Any of them.
            Matching::Native => {
                let others = named.map(|of| of.pattern.literals()).collect::<Option<Vec<_>>>()?;
                Some(first.into_iter().chain(others.into_iter().flatten()).collect())
            }
        }
    }

    /// Whether devices above those that it finds decide.
    pub(crate) fn looks_above(&self) -> bool {
        self.0.iter().any(|of| of.ancestors)
    }

    pub(crate) fn looks_at_attributes(&self) -> bool {
        self.0.iter().any(|of| matches!(of.field, Field::Attribute(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_akris_users_are_read() {
        for (text, count) in [
            (r#"KERNEL=="video[0-9]*""#, 1),
            (r#"SUBSYSTEM=="sound", ATTR{id}=="C110", KERNEL=="pcmC[0-9]*D[0-9]*c""#, 3),
            (r#"ATTRS{product}=="HD Webcam (C270) & more, = +#!@~é""#, 1),
            (r#"ENV{ID_MODEL} == "*" ,	TAG != "x","#, 2),
            (r#"SUBSYSTEMS=="usb", DRIVERS!="hub", KERNELS=="1-10", TAGS=="seat", DEVPATH=="/devices/*""#, 5),
        ] {
            assert_eq!(parse(text).unwrap().0.len(), count, "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_is_told_by_column_and_reason() {
        for (text, column, what) in [
            ("", 1, "empty"),
            ("   ", 1, "empty"),
            (r#"KERNEL=="a" KERNEL=="b""#, 13, "comma"),
            (r#"ACTION=="add""#, 1, "what happens"),
            (r#"KERNEL=="a", NAME+="x""#, 14, "given by rules"),
            (r#"KERNEL+="a""#, 7, "sets a value"),
            (r#"KERNEL"#, 7, "== or !="),
            (r#"KERNEL==a"#, 9, "double quotes"),
            (r#"KERNEL=="a"#, 9, "not closed"),
            (r#"ATTR=="a""#, 1, "key in braces"),
            (r#"ATTR{}=="a""#, 6, "empty"),
            (r#"ATTR{a=="a""#, 6, "not closed"),
            (r#"ATTRS{../x}=="a""#, 7, "leads out"),
            (r#"KERNEL{x}=="a""#, 1, "no key"),
            (r#"COLOUR=="a""#, 1, "no key"),
            (r#"=="a""#, 1, "expected a key"),
            (r#"ENV{é}=="é", x"#, 14, "no key"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.column == column && error.what.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn a_rule_knows_the_subsystems_that_it_needs() {
        let of = |text: &str, matching| {
            parse(text)
                .unwrap()
                .subsystems(matching)
                .map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(r#"SUBSYSTEM=="usb|tty""#, Matching::Udev).unwrap(), ["usb", "tty"]);
        assert_eq!(of(r#"SUBSYSTEM=="usb", SUBSYSTEM=="tty""#, Matching::Native).unwrap(), ["usb", "tty"]);
        assert_eq!(of(r#"SUBSYSTEM=="u*""#, Matching::Udev), None);
        assert_eq!(of(r#"SUBSYSTEM!="usb""#, Matching::Udev), None);
        assert_eq!(of(r#"SUBSYSTEMS=="usb""#, Matching::Udev), None);
    }
}
