//! Digests: `sha256:...`, and the other algorithms that the OCI names.

use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The algorithm and the digits of a digest, if it is one that can be checked here.
pub(crate) fn parts(digest: &str) -> Option<(&str, &str)> {
    let (algorithm, digits) = digest.split_once(':')?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return None,
    };
    let valid =
        digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
    valid.then_some((algorithm, digits))
}

/// Computes a digest of one of them.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    /// For the algorithm of a digest; of one that is not known, SHA-256.
    pub(crate) fn like(digest: &str) -> Self {
        match parts(digest) {
            Some(("sha384", _)) => Self::Sha384(Sha384::new()),
            Some(("sha512", _)) => Self::Sha512(Sha512::new()),
            _ => Self::Sha256(Sha256::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn digest(self) -> String {
        match self {
            Self::Sha256(hash) => format!("sha256:{}", hex(&hash.finalize())),
            Self::Sha384(hash) => format!("sha384:{}", hex(&hash.finalize())),
            Self::Sha512(hash) => format!("sha512:{}", hex(&hash.finalize())),
        }
    }
}

/// The digest of bytes, by the algorithm of another one.
pub(crate) fn of(bytes: &[u8], like: &str) -> String {
    let mut hasher = Hasher::like(like);
    hasher.update(bytes);
    hasher.digest()
}
