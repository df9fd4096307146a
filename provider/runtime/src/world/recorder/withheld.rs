//! What is left out of a recording.

use akri_recording::{Event, Http, Secrets, Tcp, WITHHELD};
use base64::Engine as _;
use std::collections::HashMap;
use std::time::Duration;

/// Values of the Configuration, and of the environment those that may be secrets.
pub(super) fn secrets(properties: &[(String, Option<Vec<u8>>)], env: &[(String, String)]) -> Secrets {
    let of_env = env.iter().filter(|(name, value)| value.len() >= LEAST_OF_ENV && !is_setting(name));
    let of_env = of_env.map(|(_, value)| value.as_bytes().to_vec());
    let values = properties.iter().filter_map(|(_, value)| value.as_deref()).flat_map(texts).chain(of_env);
    Secrets::of(values.collect::<Vec<_>>().iter().map(Vec::as_slice))
}

/// Values of the environment that are secrets perhaps.
const LEAST_OF_ENV: usize = 8;

fn is_setting(name: &str) -> bool {
    ["DISCOVERY_", "AKRI_", "RUST_"].iter().any(|prefix| name.starts_with(prefix))
}

/// A value, and if it is JSON or base64, the texts in it.
fn texts(value: &[u8]) -> Vec<Vec<u8>> {
    let mut texts = vec![value.to_vec()];
    let mut left: Vec<serde_json::Value> = serde_json::from_slice(value).into_iter().collect();
    let mut leaves = vec![value.trim_ascii().to_vec()];
    while let Some(value) = left.pop() {
        match value {
            serde_json::Value::String(text) => leaves.push(text.into_bytes()),
            serde_json::Value::Array(all) => left.extend(all),
            serde_json::Value::Object(all) => left.extend(all.into_values()),
            _ => {}
        }
    }
    for leaf in leaves {
        texts.extend(base64::engine::general_purpose::STANDARD.decode(&leaf));
        texts.push(leaf);
    }
    texts
}

/// Pieces of one connection or body that follow one another are one: a secret may be in two of them.
pub(super) fn joined(events: Vec<(Duration, Event)>) -> Vec<(Duration, Event)> {
    let mut all: Vec<(Duration, Event)> = Vec::new();
    // Where the newest event of each connection or request is.
    let mut newest: HashMap<(bool, u32), usize> = HashMap::new();
    for (at, event) in events {
        let key = match &event {
            Event::Tcp(number, _) => Some((true, *number)),
            Event::Http(number, _) => Some((false, *number)),
            _ => None,
        };
        let before = key.and_then(|key| newest.get(&key)).map(|place| &mut all[*place].1);
        match (before, &event) {
            (Some(Event::Tcp(_, Tcp::Wrote(before))), Event::Tcp(_, Tcp::Wrote(more)))
            | (Some(Event::Tcp(_, Tcp::Read(before))), Event::Tcp(_, Tcp::Read(more)))
            | (Some(Event::Http(_, Http::Body(before))), Event::Http(_, Http::Body(more)))
            | (Some(Event::Http(_, Http::AnswerBody(before))), Event::Http(_, Http::AnswerBody(more))) => {
                before.extend_from_slice(more);
                continue;
            }
            _ => {}
        }
        if let Some(key) = key {
            newest.insert(key, all.len());
        }
        all.push((at, event));
    }
    all
}

/// An event without them.
pub(super) fn without(event: Event, secrets: &Secrets) -> Event {
    let bytes = |bytes: Vec<u8>| secrets.without(&bytes);
    let text = |text: String| secrets.without_text(&text);
    let header = |name: String, value: Vec<u8>| {
        let value = if secrets.is_header(&name) { WITHHELD.into() } else { bytes(value) };
        (text(name), value)
    };
    match event {
        Event::Udp { own, sent, peer, payload } => Event::Udp { own, sent, peer, payload: bytes(payload) },
        Event::Tcp(number, Tcp::Wrote(of)) => Event::Tcp(number, Tcp::Wrote(bytes(of))),
        Event::Tcp(number, Tcp::Read(of)) => Event::Tcp(number, Tcp::Read(bytes(of))),
        Event::Http(number, what) => Event::Http(
            number,
            match what {
                Http::Asked { method, url } => Http::Asked { method: text(method), url: secrets.without_url(&url) },
                Http::Header(name, value) => {
                    let (name, value) = header(name, value);
                    Http::Header(name, value)
                }
                Http::AnswerHeader(name, value) => {
                    let (name, value) = header(name, value);
                    Http::AnswerHeader(name, value)
                }
                Http::Body(body) => Http::Body(bytes(body)),
                Http::AnswerBody(body) => Http::AnswerBody(bytes(body)),
                other => other,
            },
        ),
        Event::Name(name, found) => Event::Name(text(name), found),
        Event::Uevent { action, path, properties } => {
            let properties = properties.into_iter().map(|(name, value)| (name, text(value))).collect();
            Event::Uevent { action: text(action), path: text(path), properties }
        }
        Event::Group { place, link, from, payload } => Event::Group { place, link, from, payload: bytes(payload) },
        Event::SentToGroup { place, payload } => Event::SentToGroup { place, payload: bytes(payload) },
        Event::File { path, content } => Event::File { path: text(path), content: bytes(content) },
        Event::Directory(path) => Event::Directory(text(path)),
        Event::Symlink { path, to } => Event::Symlink { path: text(path), to: text(to) },
        Event::Gone(path) => Event::Gone(text(path)),
        Event::Changed { directory, name } => Event::Changed { directory: text(directory), name: text(name) },
        Event::Said(said) => Event::Said(secrets.without_said(said)),
        other => other,
    }
}
