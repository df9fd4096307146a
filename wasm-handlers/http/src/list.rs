//! A list at a URL: lines, or JSON.

use crate::details::{ListDetails, headers};
use crate::{ENDPOINT, MARK};
use akri_handler::http::{Answer, Call, without_secrets};
use akri_handler::{Device, Error, Properties, Step, time};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Redirects that are followed.
const MOST_REDIRECTS: usize = 3;
/// How long one request may take, and all redirects together: a step has 10 s.
const ONE: Duration = Duration::from_secs(5);
const ALL: Duration = Duration::from_secs(8);
/// Largest list, in bytes.
const MOST: usize = 4 << 20;

/// Where in an answer the devices are.
enum Form {
    /// Each line is one.
    Lines,
    Json {
        items: String,
        id: Option<String>,
        properties: BTreeMap<String, String>,
    },
}

/// A list that is asked for again and again.
pub struct List {
    url: String,
    headers: Vec<(String, String)>,
    interval: Duration,
    form: Form,
    /// What the server calls the list that was read last, as it wants it back.
    version: Vec<(String, String)>,
    /// What is wrong with it.
    note: Option<String>,
}

impl List {
    /// As in the walkthrough of Akri's documentation.
    pub fn lines(url: String) -> Result<Self, Error> {
        let details = ListDetails {
            url,
            interval: 10.0,
            headers: BTreeMap::new(),
            items: None,
            id: None,
            properties: BTreeMap::new(),
        };
        Self::new(details, &Properties::new())
    }

    pub fn new(details: ListDetails, properties: &Properties) -> Result<Self, Error> {
        let headers = headers(details.headers, properties)?;
        let is_json = details.items.is_some() || details.id.is_some() || !details.properties.is_empty();
        let form = match is_json {
            true => {
                Form::Json { items: details.items.unwrap_or_default(), id: details.id, properties: details.properties }
            }
            false => Form::Lines,
        };
        let interval = Duration::from_secs_f64(details.interval);
        Ok(Self { url: details.url, headers, interval, form, version: Vec::new(), note: None })
    }

    pub fn step(&mut self) -> Result<Step, Error> {
        let answer = self.ask()?;
        if answer.status == 304 {
            let step = Step::unchanged().wake_after(self.interval);
            return Ok(self.note.iter().fold(step, |step, note| step.note(note)));
        }
        if answer.status != 200 {
            return Err(self.unreadable(&format!("the answer has status {}", answer.status)));
        }
        let text = String::from_utf8_lossy(&answer.body);
        let (devices, note) = match &self.form {
            Form::Lines => (lines(&text), None),
            Form::Json { items, id, properties } => {
                json(&text, items, id.as_deref(), properties).map_err(|why| self.unreadable(&why))?
            }
        };
        let step = Step::devices(devices).wake_after(self.interval);
        let step = note.into_iter().fold(step, Step::note);
        // What is said of this list holds until there is another one.
        (self.version, self.note) = (version(&answer), step.note.clone());
        Ok(step)
    }

    /// The answer at the end of all redirects.
    fn ask(&self) -> Result<Answer, Error> {
        let until = time::now() + ALL;
        let mut call = Call::get(&self.url).most(MOST);
        call.headers = self.headers.iter().chain(&self.version).cloned().collect();
        for redirects in 0..=MOST_REDIRECTS {
            call.timeout = ONE.min(until.saturating_sub(time::now()));
            let answer = call.clone().send().map_err(|error| match redirects {
                0 => Error::from(error),
                // What a server says is not the Configuration's fault.
                _ => self.unreadable(&format!("it redirects to {error}")),
            })?;
            match call.redirected(&answer) {
                Some(next) => call = next,
                None => return Ok(answer),
            }
        }
        Err(self.unreadable(&format!("it redirects more than {MOST_REDIRECTS} times")))
    }

    fn unreadable(&self, why: &str) -> Error {
        Error::Unavailable(format!("{}: {why}", without_secrets(&self.url)))
    }
}

/// What makes the next request one for changes only.
fn version(answer: &Answer) -> Vec<(String, String)> {
    // One that is longer than anybody needs is not sent back.
    let value = |name: &str| answer.header(name).filter(|value| value.len() <= 1024);
    let of = |name: &str, wanted: &str| value(name).map(|value| (wanted.to_owned(), value.to_owned()));
    let (tag, date) = (of("etag", "if-none-match"), of("last-modified", "if-modified-since"));
    tag.or(date).into_iter().collect()
}

fn lines(text: &str) -> Vec<Device> {
    let lines: BTreeSet<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.into_iter().map(|line| Device::new(line).property(MARK.0, MARK.1).property(ENDPOINT, line)).collect()
}

/// The devices of a JSON answer, and what is wrong with some of them.
fn json(
    text: &str,
    items: &str,
    id: Option<&str>,
    properties: &BTreeMap<String, String>,
) -> Result<(Vec<Device>, Option<String>), String> {
    let answer: Value = serde_json::from_str(text).map_err(|error| format!("the answer is no JSON: {error}"))?;
    let found = answer.pointer(items).ok_or_else(|| format!("the answer has nothing at items {items:?}"))?;
    let found = found.as_array().ok_or_else(|| format!("what the answer has at items {items:?} is no list"))?;
    let (mut devices, mut without, mut twice) = (BTreeMap::new(), 0, 0);
    for item in found {
        let Some(id) = item.pointer(id.unwrap_or_default()).and_then(text_of).filter(|id| !id.is_empty()) else {
            without += 1;
            continue;
        };
        let mut device = Device::new(&id).property(MARK.0, MARK.1);
        for (name, pointer) in properties {
            if let Some(value) = item.pointer(pointer).and_then(text_of) {
                device = device.property(name, value);
            }
        }
        if devices.insert(id, device).is_some() {
            twice += 1;
        }
    }
    let note = match (without, twice) {
        (0, 0) => None,
        (0, twice) => Some(format!("{twice} items of the list have an id that another one has, too")),
        (without, _) => Some(format!("{without} items of the list have no id at {:?}", id.unwrap_or_default())),
    };
    Ok((devices.into_values().collect(), note))
}

/// A scalar as it is written.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}
