//! HTTP's digest authentication (RFC 7616), as much of it as cameras ask for: MD5 and SHA-256, with and without `qop=auth`.

use crate::credentials::Credential;
use akri_handler::random;
use md5::Md5;
use sha1::Digest as _;
use sha2::Sha256;
use std::collections::BTreeMap;

/// Longest parameter of a challenge, in bytes: it is sent back.
const MOST_PARAMETER: usize = 512;

/// The `Authorization` of a request that is asked for by these challenges; none if none of them is one of digest that is known.
pub fn authorization<'a>(
    challenges: impl Iterator<Item = &'a str>,
    credential: &Credential,
    method: &str,
    path: &str,
) -> Option<String> {
    let known = challenges.filter_map(|challenge| {
        let of = parameters(challenge)?;
        let hash: fn(&str) -> String = match of.get("algorithm").map(|name| name.to_ascii_uppercase()).as_deref() {
            None | Some("MD5") => |text| hex(&Md5::digest(text)),
            Some("SHA-256") => |text| hex(&Sha256::digest(text)),
            _ => return None,
        };
        Some((of, hash))
    });
    // The first is the one that the server likes best.
    let (of, hash) = known.into_iter().next()?;
    if of.values().any(|value| value.len() > MOST_PARAMETER) {
        return None;
    }
    let (realm, nonce) = (of.get("realm")?, of.get("nonce")?);
    let by_qop = of.get("qop").map(|qop| qop.split(',').any(|one| one.trim().eq_ignore_ascii_case("auth")));
    let user = hash(&format!("{}:{realm}:{}", credential.name, credential.password));
    let asked = hash(&format!("{method}:{path}"));
    let ours = hex(&random::bytes::<16>());
    let (response, qop) = match by_qop {
        Some(true) => (
            hash(&format!("{user}:{nonce}:00000001:{ours}:auth:{asked}")),
            format!(", qop=auth, nc=00000001, cnonce=\"{ours}\""),
        ),
        // It wants the body in the digest only, which no camera is known to do.
        Some(false) => return None,
        None => (hash(&format!("{user}:{nonce}:{asked}")), String::new()),
    };
    let mut header = format!(
        "Digest username=\"{}\", realm=\"{}\", nonce=\"{}\", uri=\"{path}\", response=\"{response}\"{qop}",
        quoted(&credential.name),
        quoted(realm),
        quoted(nonce)
    );
    for name in ["opaque", "algorithm"] {
        if let Some(value) = of.get(name) {
            let quotes = if name == "opaque" { "\"" } else { "" };
            header.push_str(&format!(", {name}={quotes}{}{quotes}", quoted(value)));
        }
    }
    Some(header)
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// What a challenge of digest says, by names in lower case.
fn parameters(challenge: &str) -> Option<BTreeMap<String, String>> {
    let (scheme, mut rest) = challenge.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("digest") {
        return None;
    }
    let mut found = BTreeMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(inner) => quoted_value(inner)?,
            None => {
                let (value, after) = after.split_once(',').unwrap_or((after, ""));
                (value.trim().to_owned(), after)
            }
        };
        found.insert(name, value);
        rest = after;
    }
    Some(found)
}

/// What stands before the closing quote, and what comes after it.
fn quoted_value(inner: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = inner.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &inner[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;

    #[test]
    fn a_digest_is_that_of_the_standard() {
        let _world = World::new();
        let credential = Credential { name: "Mufasa".to_owned(), password: "Circle Of Life".to_owned() };
        // RFC 2069's form, with the values of RFC 2617's example; its digest was computed by Python's hashlib.
        let challenge = r#"Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", opaque="5ccc069c403ebaf9f0171e9517f40e41""#;
        let header = authorization([challenge].into_iter(), &credential, "GET", "/dir/index.html").unwrap();
        assert!(header.contains(r#"response="670fd8c2df070c60b045671b8b24ff02""#), "{header}");
        assert!(header.contains(r#"opaque="5ccc069c403ebaf9f0171e9517f40e41""#));
        let with_qop = challenge.replace("opaque", "qop=\"auth-int, auth\", algorithm=SHA-256, opaque");
        let header = authorization(["Basic realm=\"x\"", &with_qop].into_iter(), &credential, "POST", "/x").unwrap();
        let field = |name: &str| {
            let rest = &header[header.find(&format!("{name}=")).unwrap() + name.len() + 1..];
            rest.trim_start_matches('"').split(['"', ',']).next().unwrap().to_owned()
        };
        let user = hex(&Sha256::digest("Mufasa:testrealm@host.com:Circle Of Life"));
        let asked = hex(&Sha256::digest("POST:/x"));
        let all = format!("{user}:{}:00000001:{}:auth:{asked}", field("nonce"), field("cnonce"));
        assert_eq!(field(" response"), hex(&Sha256::digest(all)));
        for unknown in [
            "Digest realm=\"x\"",
            "Digest realm=\"x\", nonce=\"y\", algorithm=SHA-512",
            "Digest realm=\"x",
            "Basic x",
            "",
        ] {
            assert_eq!(authorization([unknown].into_iter(), &credential, "GET", "/"), None, "{unknown}");
        }
    }
}
