//! What the author of a handler wrote of its discovery details: a JSON Schema, by which the node checks them before the guest sees
//! them.
//!
//! The schema is as hostile as the guest that it comes from. Its size, its depth and the work that it makes are bounded when it is
//! read: references stay in the document and do not come back to themselves, patterns are regular expressions without look-around,
//! which take time by the length of a text only.

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;
use std::fmt;

/// Longest schema, in bytes.
const MOST_BYTES: usize = 64 << 10;
/// Most values in it, with those that references repeat.
const MOST_VALUES: usize = 10_000;
/// Deepest nesting, with that of references.
const MOST_DEPTH: usize = 64;
/// Most patterns, with those that references repeat.
const MOST_PATTERNS: usize = 256;
/// Largest compiled pattern, in bytes.
const PATTERN_BYTES: usize = 256 << 10;
/// Most work that a check may be: values of the schema by bytes of the details.
const MOST_WORK: usize = 20_000_000;
/// Most work of a check that may be done on the thread of a call.
const QUICK_WORK: usize = 500_000;
/// What a schema may call itself.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// A schema that can be used.
pub struct DetailsSchema {
    text: String,
    values: usize,
    validator: Validator,
}

impl fmt::Debug for DetailsSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetailsSchema").field("text", &self.text).finish_non_exhaustive()
    }
}

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It is longer than [`MOST_BYTES`].
    #[error("the details schema has {0} bytes, {MOST_BYTES} at most are taken")]
    TooLong(usize),
    /// It is no JSON.
    #[error("the details schema is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is more than the node takes.
    #[error("the details schema {0}")]
    Refused(String),
    /// It is no JSON Schema.
    #[error("the details schema is no JSON Schema (2020-12): at {path:?}: {what}")]
    Invalid {
        /// JSON Pointer into the schema.
        path: String,
        /// What is wrong there.
        what: String,
    },
}

impl DetailsSchema {
    /// Reads a schema.
    pub fn read(text: &str) -> Result<Self, SchemaError> {
        if text.len() > MOST_BYTES {
            return Err(SchemaError::TooLong(text.len()));
        }
        let schema: Value = serde_json::from_str(text)?;
        let mut walk = Walk { root: &schema, values: 0, patterns: 0 };
        walk.visit(&schema, true, 0).map_err(SchemaError::Refused)?;
        let values = walk.values;
        let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES);
        let options = jsonschema::options().with_draft(Draft::Draft202012).with_pattern_options(patterns).offline();
        let validator = options.build(&schema);
        let validator = validator.map_err(|error| SchemaError::Invalid {
            path: error.instance_path().to_string(),
            what: error.to_string(),
        })?;
        Ok(Self { text: text.to_owned(), values, validator })
    }

    /// As the author wrote it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether checking these details takes next to no time.
    pub(super) fn is_quick(&self, details: &str) -> bool {
        self.work(details) <= QUICK_WORK
    }

    fn work(&self, details: &str) -> usize {
        details.len().saturating_mul(self.values)
    }

    /// Checks details, which are JSON. An error names the place and the rule.
    pub fn check(&self, details: &str) -> Result<(), String> {
        if self.work(details) > MOST_WORK {
            return Err(format!(
                "discovery details of {} bytes are too long to be checked by the handler's schema, which has {} values",
                details.len(),
                self.values
            ));
        }
        let details: Value =
            serde_json::from_str(details).map_err(|error| format!("discovery details cannot be checked: {error}"))?;
        // The first error only: all of them could be more than there is memory for.
        let Err(error) = self.validator.validate(&details) else { return Ok(()) };
        let (place, rule) = (error.instance_path().to_string(), error.schema_path().to_string());
        let place = if place.is_empty() { "/".to_owned() } else { place };
        Err(format!("discovery details at {place}: {error} (by {rule} of the handler's schema)"))
    }
}

/// Counts what a schema is, references included.
struct Walk<'a> {
    root: &'a Value,
    values: usize,
    patterns: usize,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, value: &'a Value, is_root: bool, depth: usize) -> Result<(), String> {
        self.values += 1;
        if self.values > MOST_VALUES {
            return Err(format!("has more than {MOST_VALUES} values, with those that its references repeat"));
        }
        if depth > MOST_DEPTH {
            return Err(format!("is nested more than {MOST_DEPTH} deep, or refers to itself"));
        }
        match value {
            Value::Array(list) => list.iter().try_for_each(|value| self.visit(value, false, depth + 1)),
            Value::Object(members) => {
                for (name, value) in members {
                    self.member(name, value, is_root, depth)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn member(&mut self, name: &str, value: &'a Value, is_root: bool, depth: usize) -> Result<(), String> {
        let patterns = match (name, value) {
            ("pattern", Value::String(_)) => 1,
            ("patternProperties", Value::Object(patterns)) => patterns.len(),
            _ => 0,
        };
        self.patterns += patterns;
        if self.patterns > MOST_PATTERNS {
            return Err(format!("has more than {MOST_PATTERNS} patterns"));
        }
        match (name, value) {
            ("$ref", Value::String(reference)) => {
                let target = reference
                    .strip_prefix('#')
                    .filter(|pointer| !pointer.contains('%'))
                    .and_then(|pointer| self.root.pointer(pointer));
                let Some(target) = target else {
                    return Err(format!(
                        "has the reference {reference:?}: only places in itself are taken, as #/$defs/name, without %"
                    ));
                };
                self.visit(target, std::ptr::eq(target, self.root), depth + 1)
            }
            ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                Err(format!("has {name}, which is not taken; use $ref"))
            }
            ("$schema", Value::String(draft)) if draft.trim_end_matches('#') != DRAFT => {
                Err(format!("has the $schema {draft:?}; expected {DRAFT}"))
            }
            ("$id", Value::String(_)) if !is_root => Err("has an $id in its midst, which is not taken".to_owned()),
            // Schemas by names of the author's.
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                Value::Object(schemas),
            ) => schemas.values().try_for_each(|schema| self.visit(schema, false, depth + 1)),
            // They are what they are, whatever is in them.
            ("enum" | "const" | "default" | "examples", _) => Ok(()),
            _ => self.visit(value, false, depth + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(schema: &str) -> String {
        DetailsSchema::read(schema).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_with_details_is_told_by_place_and_rule() {
        let schema = r##"{
            "type": "object", "required": ["urls"], "additionalProperties": false,
            "properties": {"urls": {"type": "array", "items": {"$ref": "#/$defs/url"}}, "timeout": {"type": "integer", "minimum": 1}},
            "$defs": {"url": {"type": "string", "pattern": "^opc\\.tcp://"}}
        }"##;
        let schema = DetailsSchema::read(schema).unwrap();
        assert_eq!(schema.check(r#"{"urls": ["opc.tcp://a:4840/"], "timeout": 5}"#), Ok(()));
        for (details, place, rule) in [
            (r#"{"urls": ["opc.tcp://a", 5]}"#, "at /urls/1:", "type"),
            (r#"{"urls": ["http://a"]}"#, "at /urls/0:", "pattern"),
            (r#"{"urls": [], "timeout": 0}"#, "at /timeout:", "minimum"),
            (r#"{"urls": [], "timeuot": 1}"#, "'timeuot'", "additionalProperties"),
            ("{}", "at /:", "required"),
            (r#""x""#, "at /:", "type"),
        ] {
            let told = schema.check(details).unwrap_err();
            assert!(told.contains(place) && told.contains(rule), "{details}: {told}");
        }
    }

    #[test]
    fn a_schema_that_is_none_is_refused_in_words() {
        assert!(refused("{").contains("no JSON"));
        assert!(refused(r#"{"type": "strnig"}"#).contains("/type"));
        assert!(refused("7").contains("no JSON Schema"));
        assert!(refused(&format!("{{\"title\": \"{}\"}}", "x".repeat(MOST_BYTES))).contains("at most"));
        assert!(refused(r#"{"pattern": "(?=a)b"}"#).contains("/pattern"));
        assert!(refused(r#"{"$ref": "https://example.com/schema"}"#).contains("only places in itself"));
        assert!(refused(r##"{"$ref": "#/$defs/none"}"##).contains("only places in itself"));
        assert!(refused(r##"{"$ref": "#/$defs/%61", "$defs": {"%61": true, "a": {}}}"##).contains("without %"));
        assert!(refused(r#"{"$schema": "http://json-schema.org/draft-04/schema#"}"#).contains("$schema"));
        assert!(DetailsSchema::read(&format!(r#"{{"$schema": "{DRAFT}"}}"#)).is_ok());
    }

    #[test]
    fn a_schema_that_would_take_the_nodes_time_is_refused() {
        assert!(refused(r##"{"$ref": "#"}"##).contains("refers to itself"));
        assert!(refused(r##"{"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}"##).contains("refer"));
        assert!(refused(r##"{"items": {"$ref": "#"}}"##).contains("refers to itself"));
        assert!(refused(r##"{"$dynamicRef": "#a"}"##).contains("$dynamicRef"));
        // Ten levels of ten references each.
        let level = |number: u32| {
            let next = format!("{{\"$ref\": \"#/$defs/l{}\"}}", number + 1);
            format!("\"l{number}\": {{\"anyOf\": [{}]}}", vec![next; 10].join(","))
        };
        let levels = (0..10).map(level).collect::<Vec<_>>().join(",");
        let bomb = format!("{{\"$ref\": \"#/$defs/l0\", \"$defs\": {{{levels}, \"l10\": {{\"type\": \"string\"}}}}}}");
        assert!(refused(&bomb).contains("values"), "{}", refused(&bomb));
        let patterns = (0..300).map(|number| format!("\"^a{number}\": {{}}")).collect::<Vec<_>>().join(",");
        assert!(refused(&format!("{{\"patternProperties\": {{{patterns}}}}}")).contains("patterns"));
        assert!(refused(r#"{"pattern": "(a{1000}){1000}"}"#).contains("pattern"));
        // A property may be called as a keyword is.
        for name in ["default", "enum", "const", "examples"] {
            let hidden = |schema: &str| format!("{{\"properties\": {{\"{name}\": {schema}}}}}");
            assert!(refused(&hidden(&bomb)).contains("only places in itself"), "its references begin at the root");
            assert!(refused(&hidden(&format!("{{\"patternProperties\": {{{patterns}}}}}"))).contains("patterns"));
            assert!(refused(&hidden(r##"{"$ref": "#"}"##)).contains("refers to itself"));
        }
        let schema = DetailsSchema::read(&format!(
            r#"{{"enum": [1], "allOf": [{}]}}"#,
            vec!["{\"type\":\"array\"}"; 400].join(",")
        ))
        .unwrap();
        assert!(schema.check(&format!("\"{}\"", "x".repeat(1 << 20))).unwrap_err().contains("too long"));
    }
}
