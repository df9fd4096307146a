//! Image references: `registry.example:5000/a/module:v1@sha256:...`.

use oci_client::Reference;

/// Longest repository name, in bytes.
const MOST_NAME: usize = 255;
/// Longest tag, in bytes.
const MOST_TAG: usize = 128;

/// Why a text is no image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// The registry's name.
    #[error("{0:?} is not a registry's name: host, or host:port")]
    Registry(String),
    /// The repository.
    #[error(
        "{0:?} is not a repository: lower-case letters and digits, joined by `.`, `_`, `__` or `-`, in parts separated by `/`"
    )]
    Repository(String),
    /// The repository is too long.
    #[error("the repository has {0} bytes, {MOST_NAME} at most are taken")]
    TooLong(usize),
    /// The tag.
    #[error(
        "{0:?} is not a tag: at most {MOST_TAG} letters, digits, `_`, `.` and `-`, beginning with none of the last two"
    )]
    Tag(String),
    /// The digest.
    #[error("{0:?} is not a digest: sha256: and 64 hexadecimal digits, or sha384 with 96, sha512 with 128")]
    Digest(String),
}

/// Reads a reference with Docker's defaults: registry docker.io, its official images below `library/`, tag `latest`.
///
/// The type's own parser does the same with a regular expression that takes 12 MB of memory for the life of the process; a
/// test holds the two together.
pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon before a slash belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((name, tag)) => (name, Some(tag)),
        None => (rest, None),
    };
    let (registry, repository) = match name.split_once('/') {
        Some((registry, repository)) if registry.contains(['.', ':']) || registry == "localhost" => {
            (registry, repository.to_owned())
        }
        _ => ("docker.io", name.to_owned()),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    if !is_registry(registry) {
        return Err(ReferenceError::Registry(registry.to_owned()));
    }
    if !repository.split('/').all(is_path_component) {
        return Err(ReferenceError::Repository(repository));
    }
    let official = registry == "docker.io" && !repository.contains('/');
    let repository = if official { format!("library/{repository}") } else { repository };
    if repository.len() > MOST_NAME {
        return Err(ReferenceError::TooLong(repository.len()));
    }
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(ReferenceError::Tag(tag.to_owned()));
    }
    if let Some(digest) = digest.filter(|digest| !is_digest(digest)) {
        return Err(ReferenceError::Digest(digest.to_owned()));
    }
    let registry = registry.to_owned();
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest.to_owned())
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    })
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(is_label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_path_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_joint = |joint: &str| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-');
    text.bytes().next().is_some_and(is_word)
        && text.bytes().last().is_some_and(is_word)
        && text.split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit()).all(is_joint)
}

fn is_tag(text: &str) -> bool {
    (1..=MOST_TAG).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && !text.starts_with(['.', '-'])
}

fn is_digest(text: &str) -> bool {
    let digits = match text.split_once(':') {
        Some(("sha256", digits)) if digits.len() == 64 => digits,
        Some(("sha384", digits)) if digits.len() == 96 => digits,
        Some(("sha512", digits)) if digits.len() == 128 => digits,
        _ => return false,
    };
    digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Apart from registries with `_`, which the library takes and no name server knows.
    #[test]
    fn references_are_read_as_the_library_reads_them() {
        let sha256 = format!("@sha256:{}", "f".repeat(64));
        let names = [
            "a",
            "a/b",
            "a/b/c",
            "localhost/a",
            "host/a",
            "host.example/a/b",
            "host:5000/a",
            "HOST.example/a",
            "a_b/c",
            "a__b",
            "a___b",
            "a.b",
            "a..b",
            "a---b",
            "a-",
            "-a",
            "a/",
            "/a",
            "a//b",
            "A",
            "a.b/C",
            "-h.example/a",
            "h-.example/a",
            "h..example/a",
            "host:/a",
            "host:x/a",
            "index.docker.io/a",
            "docker.io/a/b",
            "",
            "\u{e9}",
            "a b",
            "127.0.0.1:5000/a",
            "xn--n3h.com/a",
        ];
        let tags = ["", ":v1", ":V1.2_3-4", ":", ":.a", ":-a", ":_a", ":a/b", ":5000", ":a:b"];
        let digests =
            ["", &sha256, "@", "@sha256:ff", "@md5:ffffffffffffffffffffffffffffffff", &sha256.replace('f', "g")];
        let mut texts = vec![
            "a".repeat(247),
            "a".repeat(248),
            format!("a.example/{}", "a".repeat(255)),
            format!("a.example/{}", "a".repeat(256)),
            format!("a:{}", "t".repeat(128)),
            format!("a:{}", "t".repeat(129)),
        ];
        for name in names {
            for tag in tags {
                texts.extend(digests.iter().map(|digest| format!("{name}{tag}{digest}")));
            }
        }
        let mut good = 0;
        for text in texts {
            let theirs = text.parse::<Reference>().ok();
            assert_eq!(parse(&text).ok(), theirs, "{text:?}");
            good += usize::from(theirs.is_some());
        }
        assert!(good > 100, "{good}");
    }

    #[test]
    fn an_error_names_the_part_at_fault() {
        let cases = [
            ("h_st.example/a", ReferenceError::Registry("h_st.example".to_owned())),
            ("a.example/B:v1", ReferenceError::Repository("B".to_owned())),
            ("a:-1", ReferenceError::Tag("-1".to_owned())),
            ("a@sha256:0", ReferenceError::Digest("sha256:0".to_owned())),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text), Err(error));
        }
    }
}
