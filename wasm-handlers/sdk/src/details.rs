//! What a Configuration says.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// `discoveryProperties`: each with its bytes, or without any.
pub type Properties = BTreeMap<String, Option<Vec<u8>>>;

/// A text that need not be quoted in the Configuration: `10`, `no` and `0x1F` are texts, too, and keep their letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Box::<RawValue>::deserialize(deserializer)?;
        let written = written.get();
        match written.as_bytes().first() {
            Some(b'"') => serde_json::from_str(written).map(Self).map_err(D::Error::custom),
            Some(b'[' | b'{') => Err(D::Error::custom(format!("{written} is no text"))),
            _ => Ok(Self(written.to_owned())),
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // JSON has a plain scalar as it reads it.
        schemars::json_schema!({"type": ["string", "number", "boolean", "null"]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_keeps_its_letters() {
        let texts: Vec<Text> = serde_json::from_str(r#"["a\n", 5.10, true, null]"#).unwrap();
        let texts: Vec<_> = texts.iter().map(|text| text.0.as_str()).collect();
        assert_eq!(texts, ["a\n", "5.10", "true", "null"]);
        assert!(serde_json::from_str::<Text>("[1]").unwrap_err().to_string().contains("[1] is no text"));
    }
}
