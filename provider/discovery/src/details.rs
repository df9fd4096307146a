//! From a `DiscoverRequest` to the JSON that a guest reads.

use akri_proto::v0::{ByteData, DiscoverRequest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

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
    /// They parse to something else than a mapping.
    #[error("discovery details must be a mapping of keys to values (`descriptions: [foo0]`), not {0}")]
    NotAMapping(&'static str),
}

/// The details as JSON, as the guest's `in.in` holds them: the mapping that the Configuration's author wrote, and under
/// `discovery_properties` the properties (bytes as base64, `null` for a property without value) if there are any.
pub fn request_json(request: &DiscoverRequest) -> Result<Vec<u8>, DetailsError> {
    let details = &request.discovery_details;
    if details.len() > MOST_DETAILS {
        return Err(DetailsError::TooLong(details.len()));
    }
    let mut details = parse(details)?;
    if !request.discovery_properties.is_empty() {
        details.insert("discovery_properties".to_owned(), properties_json(&request.discovery_properties));
    }
    Ok(Value::Object(details).to_string().into_bytes())
}

fn parse(details: &str) -> Result<Map<String, Value>, DetailsError> {
    // JSON first: it is what programs write, and its errors would only be told as YAML's.
    let parsed = match serde_json::from_str(details) {
        Ok(value) => value,
        Err(_) => serde_saphyr::from_str::<Value>(details)
            .map_err(|error| DetailsError::Malformed(first_line(&error.to_string())))?,
    };
    match parsed {
        Value::Object(mapping) => Ok(mapping),
        Value::Null => Err(DetailsError::NotAMapping("nothing")),
        Value::Array(_) => Err(DetailsError::NotAMapping("a list")),
        Value::String(_) => Err(DetailsError::NotAMapping("a text")),
        Value::Bool(_) | Value::Number(_) => Err(DetailsError::NotAMapping("a single value")),
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
    properties.iter().map(|(name, data)| (name.clone(), json(data))).collect()
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
        request_json(&request).map(|json| String::from_utf8(json).unwrap()).map_err(|error| error.to_string())
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
    fn what_is_no_mapping_is_refused_in_words() {
        for (details, word) in
            [("", "nothing"), ("- a", "a list"), ("only words", "a text"), ("7", "a single value"), ("a: [", "YAML")]
        {
            let error = json(details, &[]).unwrap_err();
            assert!(error.contains(word), "{details:?}: {error}");
        }
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
