//! What is left out of a recording.

use crate::Said;

/// What stands in its place, in texts and as a value that is not known.
pub const WITHHELD: &str = "withheld";

/// Shorter values are no secrets: they would be found everywhere.
const LEAST: usize = 4;
/// Parts of names of headers, members of JSON and parameters of URLs whose values are secrets.
const NAMES: [&str; 9] = ["auth", "token", "secret", "cookie", "key", "passw", "pwd", "credential", "signature"];

fn is_secret_name(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|part| find(&name, part.as_bytes()).is_some())
}

/// Texts that are found and replaced.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    values: Vec<Vec<u8>>,
    /// Nothing is left out.
    none: bool,
}

impl Secrets {
    /// Nothing is left out, whatever it is.
    pub fn none() -> Self {
        Self { values: Vec::new(), none: true }
    }

    /// These values, and what is always one.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for value in values {
            let plain = value.trim_ascii();
            all.push(value.to_owned());
            all.extend(forms(plain));
            // Of YAML, or lines with names: each of its words.
            let words = plain.split(|byte| b"\"'{}[],: \n\r\t=".contains(byte)).filter(|word| word.len() >= 2 * LEAST);
            all.extend(words.filter(|word| *word != plain).flat_map(forms));
        }
        all.retain(|value| value.len() >= LEAST);
        // A longer one may have a shorter one in it.
        all.sort_by_key(|value| std::cmp::Reverse(value.len()));
        all.dedup();
        Self { values: all, none: false }
    }

    /// Whether values of the Configuration are left out.
    pub fn leave_out_values(&self) -> bool {
        !self.none
    }

    /// Whether that is a header whose value is left out.
    pub fn is_header(&self, name: &str) -> bool {
        !self.none && is_secret_name(name.as_bytes())
    }

    /// Without the secrets.
    pub fn without(&self, bytes: &[u8]) -> Vec<u8> {
        if self.none {
            return bytes.to_owned();
        }
        let mut without = bytes.to_owned();
        for value in &self.values {
            without = replaced(&without, value);
        }
        without_members(without_passwords(without_headers(without)))
    }

    /// The same of a text.
    pub fn without_text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.without(text.as_bytes())).into_owned()
    }

    /// The same of what a handler says.
    pub fn without_said(&self, said: Said) -> Said {
        let text = |text: String| self.without_text(&text);
        match said {
            Said::List(mut devices) => {
                for device in &mut devices {
                    device.id = text(std::mem::take(&mut device.id));
                    device.properties.iter_mut().for_each(|(_, value)| *value = text(std::mem::take(value)));
                    for (container, host, _) in &mut device.mounts {
                        (*container, *host) = (text(std::mem::take(container)), text(std::mem::take(host)));
                    }
                    for (container, host, _) in &mut device.nodes {
                        (*container, *host) = (text(std::mem::take(container)), text(std::mem::take(host)));
                    }
                }
                Said::List(devices)
            }
            Said::InvalidDetails(what) => Said::InvalidDetails(text(what)),
            Said::Unavailable(what) => Said::Unavailable(text(what)),
            Said::Internal(what) => Said::Internal(text(what)),
        }
    }

    /// The same of a URL, whose user is one, too.
    pub fn without_url(&self, url: &str) -> String {
        if self.none {
            return url.to_owned();
        }
        let url = without_parameters(&self.without_text(url));
        let Some((scheme, rest)) = url.split_once("://") else { return url };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        match authority.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{WITHHELD}@{host}{path}"),
            None => url,
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    (!what.is_empty()).then(|| bytes.windows(what.len()).position(|window| window == what)).flatten()
}

fn replaced(bytes: &[u8], what: &[u8]) -> Vec<u8> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while let Some(at) = find(rest, what) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(WITHHELD.as_bytes());
        rest = &rest[at + what.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Headers of HTTP in the bytes of a connection.
fn without_headers(bytes: Vec<u8>) -> Vec<u8> {
    let name = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b':').filter(|at| (1..64).contains(at))?;
        let is_name = line[..at].iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
        (is_name && is_secret_name(&line[..at])).then_some(at)
    };
    if !bytes.split(|byte| *byte == b'\n').any(|line| name(line).is_some()) {
        return bytes;
    }
    let mut out = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match name(line) {
            Some(at) => {
                out.extend_from_slice(&line[..=at]);
                out.extend_from_slice(format!(" {WITHHELD}").as_bytes());
                let end = line.len() - line.iter().rev().take_while(|byte| b"\r\n".contains(byte)).count();
                out.extend_from_slice(&line[end..]);
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

/// The digest of a password in SOAP: whoever has it can try passwords.
fn without_passwords(bytes: Vec<u8>) -> Vec<u8> {
    const TAG: &[u8] = b"Password";
    let (mut rest, mut out) = (bytes.as_slice(), Vec::new());
    while let Some(at) = find(rest, TAG) {
        let after = at + TAG.len();
        // `<Password ...>` or `<wsse:Password ...>`, not `</Password>`.
        let start = rest[..at].iter().rposition(|byte| *byte == b'<');
        let opens = start.is_some_and(|start| {
            rest[start + 1..at].iter().all(|byte| byte.is_ascii_alphanumeric() || b":-_".contains(byte))
        });
        let content = rest[after..].iter().position(|byte| *byte == b'>').map(|at| after + at + 1);
        let end =
            content.and_then(|content| rest[content..].iter().position(|byte| *byte == b'<').map(|at| content + at));
        match (opens, content, end) {
            (true, Some(content), Some(end)) => {
                out.extend_from_slice(&rest[..content]);
                out.extend_from_slice(WITHHELD.as_bytes());
                rest = &rest[end..];
            }
            _ => {
                out.extend_from_slice(&rest[..after]);
                rest = &rest[after..];
            }
        }
    }
    out.extend_from_slice(rest);
    out
}

/// Members of JSON with a secret's name, if their values are texts.
fn without_members(bytes: Vec<u8>) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), bytes.as_slice());
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        let Some(length) = rest[start + 1..].iter().position(|byte| *byte == b'"') else { break };
        let after = start + length + 2;
        let blank = |from: usize| from + rest[from..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let colon = blank(after);
        let is_name = rest.get(colon) == Some(&b':') && is_secret_name(&rest[start + 1..after - 1]);
        let value = blank((colon + 1).min(rest.len()));
        if !is_name || rest.get(value) != Some(&b'"') {
            // The next quote may begin a name.
            out.extend_from_slice(&rest[..after - 1]);
            rest = &rest[after - 1..];
            if !is_name && rest.first() == Some(&b'"') && rest.get(1).is_some() {
                out.push(b'"');
                rest = &rest[1..];
            }
            continue;
        }
        let text = &rest[value + 1..];
        let end =
            (0..text.len()).find(|at| text[*at] == b'"' && (*at == 0 || text[at - 1] != b'\\')).unwrap_or(text.len());
        out.extend_from_slice(&rest[..=value]);
        out.extend_from_slice(WITHHELD.as_bytes());
        rest = &text[end..];
        if let Some((quote, more)) = rest.split_first() {
            out.push(*quote);
            rest = more;
        }
    }
    out.extend_from_slice(rest);
    out
}

/// Parameters of a URL with a secret's name.
fn without_parameters(url: &str) -> String {
    let Some((path, query)) = url.split_once('?') else { return url.to_owned() };
    let (query, part) = query.split_once('#').map_or((query, None), |(query, part)| (query, Some(part)));
    let parameter = |text: &str| match text.split_once('=') {
        Some((name, _)) if is_secret_name(name.as_bytes()) => format!("{name}={WITHHELD}"),
        _ => text.to_owned(),
    };
    let query = query.split('&').map(parameter).collect::<Vec<_>>().join("&");
    format!("{path}?{query}{}", part.map(|part| format!("#{part}")).unwrap_or_default())
}

/// A value, and how it is written elsewhere.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    if value.len() < LEAST {
        return Vec::new();
    }
    let each = |plain: &dyn Fn(u8) -> bool, other: &dyn Fn(u8) -> String| -> Vec<u8> {
        let of = |byte: &u8| if plain(*byte) { char::from(*byte).to_string() } else { other(*byte) };
        value.iter().map(of).collect::<String>().into_bytes()
    };
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let percent = |byte: u8| format!("%{byte:02X}");
    let mut forms = vec![value.to_owned(), each(&is_unreserved, &percent)];
    forms.push(each(&is_unreserved, &|byte| if byte == b' ' { "+".to_owned() } else { percent(byte) }));
    forms.push(each(&is_unreserved, &|byte| percent(byte).to_lowercase()));
    if let Ok(text) = std::str::from_utf8(value) {
        let xml = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        forms.push(xml.clone().into_bytes());
        forms.push(xml.replace('"', "&quot;").replace('\'', "&apos;").into_bytes());
        forms.push(text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into_bytes());
    }
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    forms.push(hex.to_uppercase().into_bytes());
    forms.push(hex.into_bytes());
    // Wherever it stands in what was encoded: without the letters that its neighbours have a part in.
    for before in 0..3 {
        let encoded = base64(&[&vec![0; before][..], value].concat());
        let first = (before * 8).div_ceil(6);
        let last = (before + value.len()) * 8 / 6;
        if let Some(own) = encoded.get(first..last).filter(|own| own.len() >= 2 * LEAST - 3) {
            forms.push(own.replace('+', "-").replace('/', "_").into_bytes());
            forms.push(own.as_bytes().to_vec());
        }
    }
    forms
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = |piece: &[u8]| {
        let number =
            piece.iter().enumerate().fold(0u32, |number, (at, byte)| number | u32::from(*byte) << (16 - 8 * at));
        (0..4)
            .map(|at| match at <= piece.len() {
                true => char::from(LETTERS[(number >> (18 - 6 * at) & 63) as usize]),
                false => '=',
            })
            .collect::<String>()
    };
    bytes.chunks(3).map(letters).collect()
}
