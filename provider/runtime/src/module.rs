//! What a file claims to be: its digest, and whether it is a module or a component.

use sha2::{Digest as _, Sha256};
use std::fmt;

/// SHA-256 of a module's bytes; names it in the AOT store and, as `sha256:<hex>`, in statuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads `sha256:<hex>`, as [`Display`](fmt::Display) writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// 64 lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The two binary formats that share the `\0asm` magic; told apart by the layer field behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A core module: what `wasm32-wasip1` produces.
    Module,
    /// A component: what `wasm32-wasip2` produces.
    Component,
}

/// Why bytes are neither a module nor a component.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotWasm {
    /// The file has no content.
    #[error("the file is empty")]
    Empty,
    /// It does not begin with `\0asm`.
    #[error("not WebAssembly: it begins with {0}; expected a module built for wasm32-wasip1")]
    Magic(String),
    /// The magic is there, the eight bytes of the header are not, or they name a version nobody has released.
    #[error("not a WebAssembly module or component of a known version (truncated header?)")]
    Version,
}

impl ModuleKind {
    /// Reads the eight header bytes. The rest of `bytes` is checked when it is compiled.
    pub fn of(bytes: &[u8]) -> Result<Self, NotWasm> {
        if bytes.is_empty() {
            return Err(NotWasm::Empty);
        }
        if !bytes.starts_with(b"\0asm") {
            let head = &bytes[..bytes.len().min(8)];
            return Err(NotWasm::Magic(format!("{:?}", String::from_utf8_lossy(head))));
        }
        match bytes.get(4..8) {
            Some([1, 0, 0, 0]) => Ok(Self::Module),
            Some([0x0d, 0, 1, 0]) => Ok(Self::Component),
            _ => Err(NotWasm::Version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_components_are_told_apart_by_content() {
        assert_eq!(ModuleKind::of(b"\0asm\x01\0\0\0rest"), Ok(ModuleKind::Module));
        assert_eq!(ModuleKind::of(b"\0asm\x0d\0\x01\0rest"), Ok(ModuleKind::Component));
        assert_eq!(ModuleKind::of(b""), Err(NotWasm::Empty));
        assert_eq!(ModuleKind::of(b"\0asm\x01"), Err(NotWasm::Version));
        assert!(matches!(ModuleKind::of(b"\x7fELF....."), Err(NotWasm::Magic(_))));
    }

    #[test]
    fn a_digest_prints_as_an_image_digest() {
        assert_eq!(
            Digest::of(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
