//! What a Configuration says.

use akri_handler::{Action, FilterList};

/// What the node checks before it asks.
pub const SCHEMA: &str = r##"{
    "$defs": {
        "filter": {
            "type": ["object", "null"], "required": ["items"],
            "properties": {
                "items": {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}},
                "action": {"enum": ["Include", "Exclude"]}
            }
        }
    },
    "type": "object",
    "properties": {
        "ipAddresses": {"$ref": "#/$defs/filter"},
        "macAddresses": {"$ref": "#/$defs/filter"},
        "scopes": {"$ref": "#/$defs/filter"},
        "uuids": {"$ref": "#/$defs/filter"},
        "discoveryTimeoutSeconds": {"type": "integer", "minimum": 0},
        "interval": {"type": "number", "minimum": 1, "maximum": 86400},
        "missedProbes": {"type": "integer", "minimum": 0, "maximum": 1000},
        "identity": {"enum": ["url", "uuid"]}
    }
}"##;

/// `discoveryDetails`, with the keys of Akri's own handler and three more.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    pub ip_addresses: Option<FilterList>,
    pub mac_addresses: Option<FilterList>,
    pub scopes: Option<FilterList>,
    pub uuids: Option<FilterList>,
    #[serde(default = "one")]
    pub discovery_timeout_seconds: u32,
    #[serde(default = "ten")]
    pub interval: f64,
    #[serde(default = "three")]
    pub missed_probes: u32,
    #[serde(default)]
    pub identity: Identity,
}

fn one() -> u32 {
    1
}

fn ten() -> f64 {
    10.0
}

fn three() -> u32 {
    3
}

/// What makes a camera the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// Its service's URL and its uuid, as Akri's own handler has it.
    #[default]
    Url,
    /// Its uuid, wherever it is.
    Uuid,
}

/// Whether a camera passes a filter by what is known of it; one of which nothing is known passes only where nothing is asked.
pub fn passes(filter: Option<&FilterList>, known: Option<&[&str]>, is_same: impl Fn(&str, &str) -> bool) -> bool {
    match (filter, known) {
        (None, _) => true,
        (Some(filter), _) if filter.items.is_empty() && filter.action == Action::Exclude => true,
        (Some(_), None) => false,
        (Some(filter), Some(known)) => filter.passes(known, is_same),
    }
}

/// Whether two are the same but for upper and lower case.
pub fn alike(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}
