//! Registry credentials in the forms that Docker and Kubernetes keep them in.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use oci_client::Reference;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;

/// Why credentials cannot be read. Never holds a part of them.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Not the JSON that Docker writes; only the place is told, because the text around it is secret.
    #[error("malformed at line {line}, column {column}: expected {expected}")]
    Malformed {
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// Which form was expected.
        expected: &'static str,
    },
    /// The `auth` of an entry is not base64 of `user:password`.
    #[error("the `auth` of {registry} is not base64 of user:password")]
    Auth {
        /// The entry's key.
        registry: String,
    },
    /// They are with a program.
    #[error(
        "the credentials are not in it but with the program docker-credential-{helper} (`credsStore`, `credHelpers`), which is not run here: log in with a config.json that has neither, or write one with `auths`"
    )]
    Helper {
        /// Its name.
        helper: String,
    },
}

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Nothing.
    Anonymous,
    /// A user and their password.
    Basic(String, String),
    /// A token for the registry itself.
    Bearer(String),
    /// A token for its server of tokens, in place of a password.
    Identity(String),
}

impl Credential {
    /// Tells credentials apart without holding them: two for the same registry are the same if this is.
    pub(crate) fn fingerprint(&self, registry: &str) -> Option<String> {
        let parts: [&str; 3] = match self {
            Self::Anonymous => return None,
            Self::Basic(user, password) => ["basic", user, password],
            Self::Bearer(token) => ["bearer", token, ""],
            Self::Identity(token) => ["identity", token, ""],
        };
        let mut hash = Sha256::new().chain_update(registry);
        for part in parts {
            hash.update([0]);
            hash.update(part);
        }
        Some(crate::digest::hex(&hash.finalize()))
    }
}

/// Credentials for any number of registries. Their `Debug` form names the registries only.
#[derive(Clone, Default)]
pub struct Credentials {
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    host: String,
    path: String,
    auth: Credential,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| format!("{}{}", entry.host, entry.path))).finish()
    }
}

/// What tools leave out, they also write as null.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    auths: Option<BTreeMap<String, Option<DockerEntry>>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
struct DockerEntry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    registrytoken: Option<String>,
    identitytoken: Option<String>,
}

impl Credentials {
    /// Reads `~/.docker/config.json`, which is also what a Secret of type `kubernetes.io/dockerconfigjson` holds.
    pub fn from_docker_config(json: &[u8]) -> Result<Self, CredentialsError> {
        let config: DockerConfig = parse(json, "Docker's config.json, {\"auths\": {...}}")?;
        let credentials = Self::from_entries(config.auths.unwrap_or_default())?;
        let helpers = config.cred_helpers.unwrap_or_default().into_values().flatten();
        let helper = config.creds_store.into_iter().chain(helpers).find(|helper| !helper.is_empty());
        match helper.filter(|_| credentials.entries.is_empty()) {
            Some(helper) => Err(CredentialsError::Helper { helper }),
            None => Ok(credentials),
        }
    }

    /// Reads the older `.dockercfg`, which a Secret of type `kubernetes.io/dockercfg` holds.
    pub fn from_dockercfg(json: &[u8]) -> Result<Self, CredentialsError> {
        Self::from_entries(parse(json, "Docker's .dockercfg, {\"registry\": {...}}")?)
    }

    fn from_entries(entries: BTreeMap<String, Option<DockerEntry>>) -> Result<Self, CredentialsError> {
        let mut credentials = Self::default();
        for (key, entry) in entries {
            let Some(auth) = entry.map(|entry| entry.auth(&key)).transpose()?.flatten() else { continue };
            let (host, path) = split(&key);
            credentials.entries.push(Entry { host, path, auth });
        }
        Ok(credentials)
    }

    /// Adds others, which are tried after these.
    pub fn extend(&mut self, others: Self) {
        self.entries.extend(others.entries);
    }

    /// What to try for an image, the most specific entry first; empty if there is none for its registry.
    pub(crate) fn of(&self, image: &Reference) -> Vec<Credential> {
        let path = format!("/{}", image.repository());
        let host = canonical(image.registry());
        let matches = |entry: &&Entry| {
            let below =
                |prefix: &str| path == prefix || path.starts_with(&format!("{}/", prefix.trim_end_matches('/')));
            host_matches(&entry.host, &host) && (entry.path.is_empty() || below(&entry.path))
        };
        let mut found: Vec<_> = self.entries.iter().filter(matches).collect();
        found.sort_by_key(|entry| std::cmp::Reverse((entry.path.len(), !entry.host.contains('*'))));
        found.into_iter().map(|entry| entry.auth.clone()).collect()
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8], expected: &'static str) -> Result<T, CredentialsError> {
    // Editors of Windows put a mark before the text.
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    serde_json::from_slice(json).map_err(|error| CredentialsError::Malformed {
        line: error.line(),
        column: error.column(),
        expected,
    })
}

impl DockerEntry {
    fn auth(self, registry: &str) -> Result<Option<Credential>, CredentialsError> {
        let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        if let Some(token) = given(self.registrytoken) {
            return Ok(Some(Credential::Bearer(token)));
        }
        // Docker writes it beside an `auth` without a password.
        if let Some(token) = given(self.identitytoken) {
            return Ok(Some(Credential::Identity(token)));
        }
        if let Some(auth) = given(self.auth) {
            let failed = || CredentialsError::Auth { registry: registry.to_owned() };
            let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
            // Tools wrap it after 76 letters.
            let auth: String = auth.split_ascii_whitespace().collect();
            let decoded = engine.decode(auth).map_err(|_| failed())?;
            let decoded = String::from_utf8(decoded).map_err(|_| failed())?;
            let (user, password) = decoded.split_once(':').ok_or_else(failed)?;
            // Docker pads with NUL.
            return Ok(Some(Credential::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned())));
        }
        let password = self.password.unwrap_or_default();
        Ok(given(self.username).map(|username| Credential::Basic(username, password)))
    }
}

/// The host, with its port, and the path of an entry's key: `https://index.docker.io/v1/` and `*.example.com:5000/team` are
/// keys.
fn split(key: &str) -> (String, String) {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = match path.trim_end_matches('/') {
        "" | "v1" | "v2" => String::new(),
        path => format!("/{}", path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path)),
    };
    (canonical(host), path)
}

/// Docker's own registry has three names.
fn canonical(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_ascii_lowercase(),
    }
}

/// Label by label; `*` stands for any letters within one. Ports must be the same.
fn host_matches(pattern: &str, host: &str) -> bool {
    let with_port = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name.to_owned(), port.to_owned()),
        _ => (host.to_owned(), String::new()),
    };
    let ((pattern, pattern_port), (host, port)) = (with_port(pattern), with_port(host));
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(&labels).all(|(pattern, label)| label_matches(pattern, label))
}

fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == label };
    let Some(mut label) = label.strip_prefix(start) else { return false };
    let mut parts: Vec<_> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = label.find(part) else { return false };
        label = &label[at + part.len()..];
    }
    label.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(json: &str, image: &str) -> Vec<String> {
        let credentials = Credentials::from_docker_config(json.as_bytes()).unwrap();
        let auths = credentials.of(&image.parse().unwrap());
        auths
            .into_iter()
            .map(|auth| match auth {
                Credential::Basic(user, password) => format!("{user}:{password}"),
                Credential::Bearer(token) | Credential::Identity(token) => token,
                Credential::Anonymous => String::new(),
            })
            .collect()
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnM6MQ=="},
            "plain.example": {"username": "u", "password": "p"},
            "both.example:5000": {"username": "no", "password": "no", "auth": "dTI6cDI"},
            "token.example": {"registrytoken": "t"},
            "empty.example": {}
        }}"#;
        assert_eq!(users(json, "library/x"), ["hub:s:1"]);
        assert_eq!(users(json, "plain.example/a/b:1"), ["u:p"]);
        assert_eq!(users(json, "both.example:5000/a"), ["u2:p2"]);
        assert_eq!(users(json, "token.example/a"), ["t"]);
        assert!(users(json, "empty.example/a").is_empty());
        let old = Credentials::from_dockercfg(br#"{"a.example": {"auth": "dTpw"}}"#).unwrap();
        assert_eq!(old.of(&"a.example/x".parse().unwrap()).len(), 1);
    }

    #[test]
    fn what_tools_write_is_read() {
        let json = "\u{feff}{\"auths\": {\"a.example\": {\"auth\": \"dTpw\\n\", \"username\": null, \"email\": null},
            \"b.example\": null, \"c.example\": {\"auth\": \"\", \"identitytoken\": \"t\"},
            \"d.example\": {\"auth\": \"dTox\\r\\nMg==\"}}, \"credHelpers\": {\"e.example\": \"gcloud\"}, \"credsStore\": null}";
        assert_eq!(users(json, "a.example/x"), ["u:p"]);
        assert_eq!(users(json, "d.example/x"), ["u:12"]);
        assert!(users(json, "b.example/x").is_empty());
        assert_eq!(users(json, "c.example/x"), ["t"]);
        assert!(users(r#"{"auths": null}"#, "a.example/x").is_empty());
        for json in [r#"{"credsStore": "desktop"}"#, r#"{"auths": {"a": {}}, "credHelpers": {"a": "ecr-login"}}"#] {
            let error = Credentials::from_docker_config(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("docker-credential-"), "{error}");
        }
    }

    #[test]
    fn credentials_are_for_their_registry_only_and_the_most_specific_come_first() {
        let json = r#"{"auths": {
            "a.example": {"username": "host", "password": ""},
            "a.example/team": {"username": "team", "password": ""},
            "*.b.example": {"username": "glob", "password": ""}
        }}"#;
        assert_eq!(users(json, "a.example/team/x"), ["team:", "host:"]);
        assert_eq!(users(json, "a.example/teamwork/x"), ["host:"]);
        assert_eq!(users(json, "c.b.example/x"), ["glob:"]);
        for other in ["a.example:5000/x", "b.example/x", "x.c.b.example/x", "evil-a.example/x", "a.example.evil.com/x"]
        {
            assert!(users(json, other).is_empty(), "{other}");
        }
    }

    #[test]
    fn an_error_tells_the_place_and_no_secret() {
        let json = br#"{"auths": {"a": {"auth": 12345}}}"#;
        let error = Credentials::from_docker_config(json).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("12345"), "{error}");
        let error = Credentials::from_docker_config(br#"{"auths": {"a": {"auth": "!secret!"}}}"#).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("!secret!"));
        let credentials = Credentials::from_docker_config(br#"{"auths": {"a": {"auth": "dTpzZWNyZXQ="}}}"#).unwrap();
        assert_eq!(format!("{credentials:?}"), r#"["a"]"#);
    }
}
