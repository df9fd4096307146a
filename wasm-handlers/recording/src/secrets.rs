//! What is left out of a recording.

/// What stands in its place, in texts and as a value that is not known.
pub const WITHHELD: &str = "withheld";

/// Shorter values are no secrets: they would be found everywhere.
const LEAST: usize = 4;
/// Headers whose values are secrets.
const HEADERS: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "authentication-info"];

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
            all.push(value.to_owned());
            let plain = value.trim_ascii();
            all.push(plain.to_owned());
            all.push(base64(plain).into_bytes());
            // Of JSON, YAML, or lines with names: each of its words.
            let words = plain.split(|byte| b"\"'{}[],: \n\r\t=".contains(byte));
            all.extend(words.filter(|word| word.len() >= 2 * LEAST).map(<[u8]>::to_vec));
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
        !self.none && HEADERS.iter().any(|of| of.eq_ignore_ascii_case(name))
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
        without_passwords(without_headers(without))
    }

    /// The same of a text.
    pub fn without_text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.without(text.as_bytes())).into_owned()
    }

    /// The same of a URL, whose user is one, too.
    pub fn without_url(&self, url: &str) -> String {
        if self.none {
            return url.to_owned();
        }
        let url = self.without_text(url);
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
        let at = line.iter().position(|byte| *byte == b':')?;
        HEADERS.iter().any(|of| of.as_bytes().eq_ignore_ascii_case(&line[..at])).then_some(at)
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
