//! The places that a request's details name by URLs.

use super::rules::{NamePattern, Ports, Rule, Target};
use super::urls::UrlPattern;
use serde_json::Value;
use std::net::IpAddr;
use url::Url;

/// Most places of one request.
const MOST_PLACES: usize = 256;

/// Ports of schemes, beside those that every URL library knows.
const PORTS: [(&str, u16); 7] = [
    ("opc.tcp", 4840),
    ("opc.https", 443),
    ("rtsp", 554),
    ("rtsps", 322),
    ("coap", 5683),
    ("mqtt", 1883),
    ("mqtts", 8883),
];

/// What a rule about details gives: a rule for each URL in them, which are JSON; nothing for other rules.
pub(super) fn given(rule: &Rule, details: &str) -> Vec<Rule> {
    if !matches!(rule, Rule::Details(_) | Rule::HttpDetails(_)) {
        return Vec::new();
    }
    let Ok(details) = serde_json::from_str::<Value>(details) else { return Vec::new() };
    let mut rules = Vec::new();
    visit(&details, rule, &mut rules);
    rules
}

fn visit(value: &Value, of: &Rule, rules: &mut Vec<Rule>) {
    if rules.len() >= MOST_PLACES {
        return;
    }
    match value {
        Value::String(text) => rules.extend(Url::parse(text.trim()).ok().and_then(|url| place(&url, of))),
        Value::Array(list) => list.iter().for_each(|value| visit(value, of, rules)),
        Value::Object(members) => members.values().for_each(|value| visit(value, of, rules)),
        _ => {}
    }
}

fn is_many(address: IpAddr) -> bool {
    address.is_multicast()
        || address.is_unspecified()
        || matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

fn place(url: &Url, of: &Rule) -> Option<Rule> {
    let protocol = match of {
        Rule::HttpDetails(certificates) => return UrlPattern::origin(url, *certificates).map(Rule::Http),
        Rule::Details(protocol) => *protocol,
        _ => return None,
    };
    let by_scheme = || PORTS.iter().find(|(scheme, _)| *scheme == url.scheme()).map(|(_, port)| *port);
    let port = url.port_or_known_default().or_else(by_scheme)?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    let target = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        // A device is in one place.
        Ok(address) if is_many(address.to_canonical()) => return None,
        Ok(address) => Target::Net(address.to_canonical().into()),
        Err(_) => Target::Name(NamePattern::host(host)?),
    };
    Some(Rule::Reach { protocol, target, ports: Ports::one(port) })
}
