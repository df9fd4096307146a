//! What a Configuration says.

use akri_handler::{Error, Properties, Text};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// What the node checks before it asks.
pub const SCHEMA: &str = r##"{
    "$defs": {
        "header": {
            "anyOf": [
                {"type": ["string", "number", "boolean"]},
                {"type": "object", "required": ["property"], "additionalProperties": false,
                 "properties": {"property": {"type": "string"}, "prefix": {"type": "string"}}}
            ]
        },
        "headers": {"type": "object", "additionalProperties": {"$ref": "#/$defs/header"}},
        "pointer": {"type": "string", "pattern": "^(/.*)?$"}
    },
    "anyOf": [
        {"type": "string", "pattern": "^[hH][tT][tT][pP][sS]?://"},
        {"type": "object", "required": ["url"], "additionalProperties": false,
         "properties": {
            "url": {"type": "string", "pattern": "^[hH][tT][tT][pP][sS]?://"},
            "interval": {"type": "number", "minimum": 1, "maximum": 86400},
            "headers": {"$ref": "#/$defs/headers"},
            "items": {"$ref": "#/$defs/pointer"},
            "id": {"$ref": "#/$defs/pointer"},
            "properties": {"type": "object", "additionalProperties": {"$ref": "#/$defs/pointer"}}
        }},
        {"type": "object", "required": ["range"], "additionalProperties": false,
         "properties": {"range": {
            "type": "object", "required": ["network"], "additionalProperties": false,
            "properties": {
                "network": {"type": "string"},
                "ports": {"type": "array", "minItems": 1, "maxItems": 16, "items": {"type": "integer", "minimum": 1, "maximum": 65535}},
                "scheme": {"enum": ["http", "https"]},
                "path": {"type": "string", "pattern": "^/"},
                "headers": {"$ref": "#/$defs/headers"},
                "status": {"type": "integer", "minimum": 100, "maximum": 599},
                "contains": {"type": "string"},
                "interval": {"type": "number", "minimum": 1, "maximum": 86400},
                "perSecond": {"type": "integer", "minimum": 1, "maximum": 48},
                "missed": {"type": "integer", "minimum": 0, "maximum": 100}
            }
        }}}
    ]
}"##;

/// `discoveryDetails`: a URL alone, a list that is read, or a range of addresses.
#[derive(Debug)]
pub enum Details {
    Url(String),
    List(ListDetails),
    Range(RangeDetails),
}

#[derive(serde::Deserialize)]
struct OfRange {
    range: RangeDetails,
}

impl<'de> Deserialize<'de> for Details {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As it is written: numbers among the headers keep their digits.
        let written = Box::<RawValue>::deserialize(deserializer)?;
        let written = written.get();
        let keys = serde_json::from_str::<BTreeMap<String, IgnoredAny>>(written).unwrap_or_default();
        let read = match (written.starts_with('"'), keys.contains_key("range")) {
            (true, _) => serde_json::from_str(written).map(Self::Url),
            (false, true) => serde_json::from_str(written).map(|OfRange { range }| Self::Range(range)),
            (false, false) => serde_json::from_str(written).map(Self::List),
        };
        read.map_err(D::Error::custom)
    }
}

#[derive(Debug, serde::Deserialize)]
pub struct ListDetails {
    pub url: String,
    #[serde(default = "ten")]
    pub interval: f64,
    #[serde(default)]
    pub headers: BTreeMap<String, Header>,
    /// Where the list is in the answer.
    pub items: Option<String>,
    /// Where an item says who it is.
    pub id: Option<String>,
    /// Variables, and where an item has them.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeDetails {
    pub network: String,
    #[serde(default = "port")]
    pub ports: Vec<u16>,
    #[serde(default = "plain")]
    pub scheme: String,
    #[serde(default = "root")]
    pub path: String,
    #[serde(default)]
    pub headers: BTreeMap<String, Header>,
    #[serde(default = "found")]
    pub status: u16,
    #[serde(default)]
    pub contains: String,
    #[serde(default = "minute")]
    pub interval: f64,
    #[serde(default = "twenty")]
    pub per_second: usize,
    #[serde(default = "three")]
    pub missed: u32,
}

fn ten() -> f64 {
    10.0
}
fn minute() -> f64 {
    60.0
}
fn port() -> Vec<u16> {
    vec![80]
}
fn plain() -> String {
    "http".to_owned()
}
fn root() -> String {
    "/".to_owned()
}
fn found() -> u16 {
    200
}
fn twenty() -> usize {
    20
}
fn three() -> u32 {
    3
}

/// A value, or what `discoveryProperties` have.
#[derive(Debug)]
pub enum Header {
    Value(String),
    Property(OfProperty),
}

/// A value in `discoveryProperties`, and what stands before it.
#[derive(Debug, serde::Deserialize)]
pub struct OfProperty {
    property: String,
    #[serde(default)]
    prefix: String,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Box::<RawValue>::deserialize(deserializer)?;
        let read = match written.get().starts_with('{') {
            true => serde_json::from_str(written.get()).map(Self::Property),
            false => serde_json::from_str(written.get()).map(|Text(text)| Self::Value(text)),
        };
        read.map_err(D::Error::custom)
    }
}

/// Headers as they are sent.
pub fn headers(headers: BTreeMap<String, Header>, properties: &Properties) -> Result<Vec<(String, String)>, Error> {
    let value = |header| -> Result<String, Error> {
        match header {
            Header::Value(text) => Ok(text),
            Header::Property(OfProperty { property, prefix }) => {
                let bytes = properties.get(&property).and_then(Option::as_ref).ok_or_else(|| {
                    Error::InvalidDetails(format!(
                        "headers: the Configuration has no discoveryProperties entry {property:?} with a value"
                    ))
                })?;
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| Error::InvalidDetails(format!("headers: {property:?} is no text")))?;
                Ok(format!("{prefix}{}", text.trim_end_matches(['\r', '\n'])))
            }
        }
    };
    headers.into_iter().map(|(name, header)| Ok((name, value(header)?))).collect()
}
