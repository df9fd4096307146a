//! Names and passwords of cameras, from `discoveryProperties` as Akri's own handler takes them.

use akri_handler::Properties;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A user of a camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub name: String,
    pub password: String,
}

/// By the cameras' uuids, and one for all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials(BTreeMap<String, Credential>);

const ALL: &str = "default";

impl Credentials {
    /// Later ones override earlier ones: lists, lists of references, single ones, the one for all others.
    pub fn new(properties: &Properties) -> Self {
        let text = |name: &str| {
            let bytes = properties.get(name)?.as_ref()?;
            std::str::from_utf8(bytes).ok()
        };
        // The entries of all lists that a property names.
        let lists = |name: &str| {
            let json = |text: &str| serde_json::from_str::<Value>(text).ok();
            let names = text(name).and_then(json).unwrap_or_default();
            let names = names.as_array().cloned().unwrap_or_default();
            let lists = names.iter().filter_map(|name| json(text(name.as_str()?)?));
            lists.map(|list| list.as_object().cloned().unwrap_or_default()).collect::<Vec<Map<String, Value>>>()
        };
        let mut all = BTreeMap::new();
        for (uuid, listed) in lists("device_credential_list").into_iter().flatten() {
            let Some(name) = listed["username"].as_str() else { continue };
            let password = listed["password"].as_str().map(str::to_owned);
            let password = match listed["base64encoded"] == true {
                true => password.and_then(|text| String::from_utf8(STANDARD.decode(text).ok()?).ok()),
                false => password,
            };
            all.insert(uuid, Credential { name: name.to_owned(), password: password.unwrap_or_default() });
        }
        for (uuid, named) in lists("device_credential_ref_list").into_iter().flatten() {
            let value = |reference: &str| named[reference].as_str().and_then(text);
            let Some(name) = value("username_ref").filter(|name| !name.is_empty()) else { continue };
            let password = value("password_ref").unwrap_or_default().to_owned();
            all.insert(uuid, Credential { name: name.to_owned(), password });
        }
        for key in properties.keys() {
            let Some(uuid) = key.strip_prefix("username_").filter(|uuid| !uuid.is_empty()) else { continue };
            let Some(name) = text(key) else { continue };
            let password = text(&format!("password_{uuid}")).unwrap_or_default().to_owned();
            // A property's name has no hyphens.
            all.insert(uuid.replace('_', "-"), Credential { name: name.to_owned(), password });
        }
        Self(all)
    }

    pub fn of(&self, uuid: &str) -> Option<&Credential> {
        self.0.get(uuid).or_else(|| self.0.get(ALL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_in_all_four_places() {
        let properties: Properties = [
            ("device_credential_list", r#"["list"]"#),
            ("list", r#"{"a": {"username": "la", "password": "cHc=", "base64encoded": true}, "b": {"username": "lb"}, "c": {"username": "lc", "password": "p"}}"#),
            ("device_credential_ref_list", r#"["refs", "missing"]"#),
            ("refs", r#"{"b": {"username_ref": "name_b", "password_ref": "pass_b"}, "x": {"username_ref": "nothing"}}"#),
            ("name_b", "rb"),
            ("pass_b", "rp"),
            ("username_1_2", "single"),
            ("password_1_2", "sp"),
            ("username_c", "sc"),
            ("username_default", "everybody"),
            ("password_default", "dp"),
            ("username_", "nobody"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())))
        .collect();
        let credentials = Credentials::new(&properties);
        let of = |uuid: &str| credentials.of(uuid).map(|of| (of.name.as_str(), of.password.as_str())).unwrap();
        assert_eq!(of("a"), ("la", "pw"));
        assert_eq!(of("b"), ("rb", "rp"));
        assert_eq!(of("c"), ("sc", ""));
        assert_eq!(of("1-2"), ("single", "sp"));
        assert_eq!(of("anybody"), ("everybody", "dp"));
        assert_eq!(Credentials::new(&Properties::new()).of("a"), None);
    }
}
