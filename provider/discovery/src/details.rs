//! From a `DiscoverRequest` to the JSON that a guest reads.
//!
//! Akri's own handlers read the details into texts, numbers and lists of their own, and a text may be written plainly: `10`,
//! `5.10`, `no` and `0012345` are themselves. So a plain scalar is JSON's number, `true`, `false` or `null` where that reads the
//! same, and else the text as it is written. `~` and an empty value of a key are null.

use akri_proto::v0::{ByteData, DiscoverRequest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use tracing::Span;

/// Longest discovery details, in bytes; a ConfigMap could not hold more either.
pub const MOST_DETAILS: usize = 1 << 20;

/// Why a request cannot be given to a guest; becomes the call's INVALID_ARGUMENT.
#[derive(Debug, thiserror::Error)]
pub enum DetailsError {
    /// They are longer than [`MOST_DETAILS`].
    #[error("discovery details have {0} bytes, {MOST_DETAILS} at most are taken")]
    TooLong(usize),
    /// They do not parse.
    #[error("discovery details are neither YAML nor JSON: {0}")]
    Malformed(String),
}

/// A request as guests are given it.
#[derive(Debug)]
pub struct DiscoveryRequest {
    /// As the `in.in` of the exchange contract holds it: the details, what the Configuration's author wrote, a mapping mostly, and in
    /// it under `discovery_properties` the properties (bytes as base64, `null` for a property without value) if there are any. To
    /// properties, details that are no mapping come as `details`.
    pub json: Vec<u8>,
    /// The details alone, as JSON.
    pub details: String,
    /// The details as they are written.
    pub raw_details: String,
    /// The properties, by name.
    pub properties: Vec<(String, Option<Vec<u8>>)>,
    /// The call that it came with, for the guest that is the first to have it.
    pub call: Mutex<Span>,
}

impl DiscoveryRequest {
    /// Reads what the Agent sent.
    pub fn read(request: DiscoverRequest) -> Result<Self, DetailsError> {
        let raw_details = request.discovery_details;
        if raw_details.len() > MOST_DETAILS {
            return Err(DetailsError::TooLong(raw_details.len()));
        }
        let malformed = |error: serde_json::Error| DetailsError::Malformed(error.to_string());
        let mut parsed = parse(&raw_details)?;
        let details = serde_json::to_string(&parsed).map_err(malformed)?;
        if !request.discovery_properties.is_empty() {
            let properties = Json::Value(properties_json(&request.discovery_properties));
            let mut members = match parsed {
                Json::Mapping(members) => members,
                other => vec![("details".to_owned(), other)],
            };
            members.retain(|(name, _)| name != PROPERTIES);
            members.push((PROPERTIES.to_owned(), properties));
            parsed = Json::Mapping(members);
        }
        let json = serde_json::to_vec(&parsed).map_err(malformed)?;
        let properties = request.discovery_properties.into_iter();
        let mut properties: Vec<_> = properties.map(|(name, data)| (name, data.vec)).collect();
        properties.sort();
        Ok(Self { json, details, raw_details, properties, call: Mutex::new(Span::none()) })
    }

    /// The span of its call, for the first who does something for it.
    pub fn take_call(&self) -> Span {
        std::mem::replace(&mut *self.call.lock().unwrap_or_else(PoisonError::into_inner), Span::none())
    }

    /// It has its first list.
    pub fn ended(&self) {
        drop(self.take_call());
    }
}

const PROPERTIES: &str = "discovery_properties";
/// Longest number that keeps its text, in bytes.
const MOST_PLAIN: usize = 64;

fn parse(details: &str) -> Result<Json, DetailsError> {
    if details.trim().is_empty() {
        return Ok(Json::Value(Value::String(String::new())));
    }
    // A number that JSON does not have stays a text, too.
    let options =
        serde_saphyr::options! { non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString };
    match serde_saphyr::from_str_with_options::<Node>(details, options) {
        Ok(node) => Ok(node.json(details, false)),
        // JSON that is no YAML, by its tabs.
        Err(error) => serde_json::from_str(details)
            .map(Json::Value)
            .map_err(|_| DetailsError::Malformed(first_line(&error.without_snippet().to_string()))),
    }
}

/// JSON whose numbers are texts.
enum Json {
    Value(Value),
    /// Valid JSON, as it is written.
    Text(Box<RawValue>),
    List(Vec<Json>),
    Mapping(Vec<(String, Json)>),
}

impl serde::Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Text(text) => text.serialize(serializer),
            Self::List(list) => serializer.collect_seq(list),
            Self::Mapping(members) => serializer.collect_map(members.iter().map(|(name, value)| (name, value))),
        }
    }
}

/// A value of a YAML document, and where it is written.
struct Node(Spanned<Content>);

enum Content {
    /// A number, a truth value or nothing: written plainly.
    Plain(Value),
    Text(String),
    List(Vec<Node>),
    Mapping(Vec<(String, Node)>),
}

impl Node {
    fn json(self, source: &str, is_member: bool) -> Json {
        let location = self.0.defined;
        match self.0.value {
            Content::Text(text) => Json::Value(Value::String(text)),
            Content::List(list) => Json::List(list.into_iter().map(|node| node.json(source, false)).collect()),
            Content::Mapping(members) => {
                Json::Mapping(members.into_iter().map(|(name, node)| (name, node.json(source, true))).collect())
            }
            // `key: ~` says that there is no value.
            Content::Plain(Value::Null) if is_member => Json::Value(Value::Null),
            Content::Plain(value) => match written(source, location) {
                // Only what is nothing but the scalar: a tag before it says what it is to be.
                // Nor a long one, of which every alias would be a copy.
                Some(text) if text.starts_with(['!', '&']) || text.len() > MOST_PLAIN => Json::Value(value),
                Some(text) => match RawValue::from_string(text.to_owned()) {
                    Ok(raw) => Json::Text(raw),
                    Err(_) => Json::Value(Value::String(text.to_owned())),
                },
                None => Json::Value(value),
            },
        }
    }
}

/// The text of a scalar.
fn written(source: &str, location: Location) -> Option<&str> {
    let span = location.span();
    let (start, length) = (usize::try_from(span.byte_offset()?).ok()?, usize::try_from(span.byte_len()?).ok()?);
    source.get(start..start.checked_add(length)?).map(str::trim)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Plain(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Plain(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Plain(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Plain(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Plain(Value::Null))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Content, E> {
        Ok(Content::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Content::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Content::Mapping(members))
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn properties_json(properties: &BTreeMap<String, ByteData>) -> Value {
    let json = |data: &ByteData| match &data.vec {
        Some(bytes) => Value::String(STANDARD.encode(bytes)),
        None => Value::Null,
    };
    properties.iter().map(|(name, data)| (name.clone(), json(data))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(details: &str, properties: &[(&str, Option<&[u8]>)]) -> Result<String, String> {
        let discovery_properties = properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), ByteData { vec: value.map(<[u8]>::to_vec) }))
            .collect();
        let request = DiscoverRequest { discovery_details: details.to_owned(), discovery_properties };
        DiscoveryRequest::read(request)
            .map(|request| String::from_utf8(request.json).unwrap())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn yaml_and_json_become_the_same_input() {
        let expected = Ok(r#"{"descriptions":["foo0","foo1"]}"#.to_owned());
        assert_eq!(json("descriptions:\n- foo0\n- foo1\n", &[]), expected);
        assert_eq!(json(r#"{"descriptions": ["foo0", "foo1"]}"#, &[]), expected);
        assert_eq!(json("descriptions: [1, true, 'x']", &[]), Ok(r#"{"descriptions":[1,true,"x"]}"#.to_owned()));
    }

    #[test]
    fn properties_are_added_as_base64() {
        let json = json("a: 1", &[("empty", None), ("key", Some(b"\x00\xffvalue"))]);
        assert_eq!(json.unwrap(), r#"{"a":1,"discovery_properties":{"empty":null,"key":"AP92YWx1ZQ=="}}"#);
    }

    #[test]
    fn a_plain_scalar_keeps_its_text() {
        let written = "[no, y, 10, 0012345, 5.10, 1e3, true, True, 1_000, ~, null, 0x1F, 0o17, .5, +1, -0, .inf, 1.0.0, '10', \"~\", !!str 5, *a]";
        let read = json(&format!("list: &l [&a 007]\nids: {written}\nkey: ~\nempty:\nother: null\n"), &[]).unwrap();
        let expected = r#"{"list":["007"],"ids":["no","y",10,"0012345",5.10,1e3,true,"True","1_000","~",null,"0x1F","0o17",".5","+1",-0,".inf","1.0.0","10","~","5","007"],"key":null,"empty":null,"other":null}"#;
        assert_eq!(read, expected);
        // However it is written.
        assert_eq!(
            json("ids:\n- 5.10 # a comment\n-   0012345\n- no\n", &[]).unwrap(),
            r#"{"ids":[5.10,"0012345","no"]}"#
        );
        assert_eq!(json("{\"a\":\t[5.10, 1e3]}", &[]).unwrap(), r#"{"a":[5.10,1e3]}"#);
        assert_eq!(json("ä: [ü, 5.10]", &[]).unwrap(), r#"{"ä":["ü",5.10]}"#);
    }

    #[test]
    fn what_is_no_mapping_reaches_the_guest_too() {
        for (details, read) in [
            ("", "\"\""),
            (" \n", "\"\""),
            ("- a\n- 5.10", r#"["a",5.10]"#),
            ("http://127.0.0.1:8080/discovery", r#""http://127.0.0.1:8080/discovery""#),
            ("7", "7"),
            ("~", "\"~\""),
        ] {
            assert_eq!(json(details, &[]).unwrap(), read, "{details:?}");
        }
        assert_eq!(json("x", &[("k", None)]).unwrap(), r#"{"details":"x","discovery_properties":{"k":null}}"#);
        assert!(json("a: [", &[]).unwrap_err().contains("YAML"));
        assert!(json(&"x".repeat(MOST_DETAILS + 1), &[]).unwrap_err().contains("at most"));
    }

    #[test]
    fn a_yaml_bomb_is_refused() {
        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let name = |level: u8| char::from(b'a' + level);
            let alias = format!("*{}", name(level - 1));
            let list = vec![alias; 10].join(", ");
            bomb.push_str(&format!("{0}: &{0} [{list}]\n", name(level)));
        }
        assert!(json(&bomb, &[]).is_err());
    }
}
