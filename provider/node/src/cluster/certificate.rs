//! Keys and certificates as files.

use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use std::path::{Path, PathBuf};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("malformed certificate: {0}")]
    Malformed(String),
    /// The certificate is of another key.
    #[error("the certificate does not belong to the key")]
    OtherKey,
    /// No key could be made.
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// A certificate chain with its key. Its `Debug` form has no key.
#[derive(Clone)]
pub struct Certificate {
    chain: String,
    key: String,
    /// Common name of the subject.
    pub common_name: String,
    /// Start of its validity.
    pub not_before: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
    /// When the node got it.
    received: Timestamp,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("common_name", &self.common_name)
            .field("not_after", &self.not_after)
            .finish()
    }
}

impl Certificate {
    /// A certificate, PEM, of this key.
    pub fn new(chain: &str, key: &KeyPair) -> Result<Self, CertificateError> {
        let malformed = |error: String| CertificateError::Malformed(error);
        let first = Pem::iter_from_buffer(chain.as_bytes())
            .flatten()
            .find(|pem| pem.label == "CERTIFICATE")
            .ok_or_else(|| malformed("no certificate in it".to_owned()))?;
        let (_, certificate) =
            X509Certificate::from_der(&first.contents).map_err(|error| malformed(error.to_string()))?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(CertificateError::OtherKey);
        }
        let time = |seconds| Timestamp::from_second(seconds).map_err(|error| malformed(error.to_string()));
        let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            chain: chain.to_owned(),
            key: key.serialize_pem(),
            common_name: common_name.unwrap_or_default().to_owned(),
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
            received: Timestamp::now(),
        })
    }

    /// Reads a file that [`Certificate::write`] wrote; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, CertificateError> {
        let Some(text) = read(path)? else { return Ok(None) };
        // Chain first, then the key, as they are written.
        let at = text.rfind("-----BEGIN ").unwrap_or(0);
        let (chain, key) = text.split_at(at);
        let key = KeyPair::from_pem(key).map_err(|error| CertificateError::Malformed(error.to_string()))?;
        let mut certificate = Self::new(chain, &key)?;
        if let Some(received) = path.metadata().and_then(|file| file.modified()).ok().and_then(|at| at.try_into().ok())
        {
            certificate.received = received;
        }
        Ok(Some(certificate))
    }

    /// Writes chain and key into one file, so that they always match; readable by its owner only.
    pub fn write(&self, path: &Path) -> Result<(), CertificateError> {
        write_secret(path, format!("{}\n{}", self.chain.trim_end(), self.key).as_bytes())
    }

    /// The names and addresses that it is for, sorted.
    pub fn alternative_names(&self) -> Vec<String> {
        use x509_parser::extensions::GeneralName;
        let pem = Pem::iter_from_buffer(self.chain.as_bytes()).flatten().next();
        let Some((_, certificate)) = pem.as_ref().and_then(|pem| X509Certificate::from_der(&pem.contents).ok()) else {
            return Vec::new();
        };
        let names = certificate.subject_alternative_name().ok().flatten();
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            },
            _ => None,
        };
        let mut names: Vec<_> =
            names.iter().flat_map(|names| names.value.general_names.iter().filter_map(text)).collect();
        names.sort();
        names
    }

    /// The chain, PEM.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// True while it is valid.
    pub fn is_valid(&self) -> bool {
        (self.not_before..self.not_after).contains(&Timestamp::now())
    }

    /// When to ask for the next one: after a `part` (0.7 to 0.9, by chance, so that a fleet does not ask at once) of the time
    /// that it had left when it was received. Signers backdate certificates, so their own start would count wrong.
    pub fn renew_at(&self, part: f64) -> Timestamp {
        let start = self.received.clamp(self.not_before, self.not_after);
        let life = self.not_after.duration_since(start);
        start + life.mul_f64(part)
    }
}

/// The certificates in a PEM file, DER.
pub fn authorities(pem: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    let blocks: Result<Vec<_>, _> = Pem::iter_from_buffer(pem).collect();
    let blocks = blocks.map_err(|error| CertificateError::Malformed(error.to_string()))?;
    Ok(blocks.into_iter().filter(|block| block.label == "CERTIFICATE").map(|block| block.contents).collect())
}

/// A number between 0.7 and 0.9.
pub(super) fn renewal_part() -> f64 {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    0.7 + 0.2 * (random % 1000) as f64 / 1000.0
}

/// The key for a certificate that has been asked for and has not come yet: kept, so that a restart asks for the same one.
#[derive(Debug)]
pub(super) struct PendingKey {
    path: PathBuf,
    pub(super) key: KeyPair,
}

impl PendingKey {
    /// The key in the file, or a new one.
    pub(super) fn take_up(path: PathBuf) -> Result<Self, CertificateError> {
        if let Some(key) = read(&path)?.and_then(|text| KeyPair::from_pem(&text).ok()) {
            return Ok(Self { path, key });
        }
        let key = KeyPair::generate()?;
        write_secret(&path, key.serialize_pem().as_bytes())?;
        Ok(Self { path, key })
    }

    /// Used, or of no use: the next request is made with a new one.
    pub(super) fn discard(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a key that is no longer needed");
        }
    }
}

fn read(path: &Path) -> Result<Option<String>, CertificateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CertificateError::Io { path: path.to_owned(), source }),
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(super) fn write_secret(path: &Path, content: &[u8]) -> Result<(), CertificateError> {
    let failed = |source| CertificateError::Io { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700)
        .create(directory)
        .map_err(failed)?;
    akri_krustlet_host::file::write_durably(path, content, 0o600).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn certificate() -> Certificate {
        let key = KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n");
        let signed = parameters.self_signed(&key).unwrap();
        Certificate::new(&signed.pem(), &key).unwrap()
    }

    #[test]
    fn a_certificate_comes_back_from_its_file_which_only_the_owner_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pki/client.pem");
        assert!(Certificate::read(&path).unwrap().is_none());
        let certificate = certificate();
        certificate.write(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let read = Certificate::read(&path).unwrap().unwrap();
        assert_eq!((read.chain().trim(), read.key()), (certificate.chain().trim(), certificate.key()));
        assert_eq!(read.common_name, "system:node:n");
        assert!(read.is_valid());
    }

    #[test]
    fn a_certificate_of_another_key_is_refused() {
        let other = KeyPair::generate().unwrap();
        assert!(matches!(Certificate::new(certificate().chain(), &other), Err(CertificateError::OtherKey)));
    }

    #[test]
    fn renewal_counts_from_when_it_was_received() {
        let mut certificate = certificate();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        (certificate.not_before, certificate.received, certificate.not_after) = (at(0), at(300), at(400));
        assert_eq!(certificate.renew_at(0.8), at(380));
    }

    #[test]
    fn a_pending_key_is_taken_up_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.key");
        let first = PendingKey::take_up(path.clone()).unwrap();
        let second = PendingKey::take_up(path.clone()).unwrap();
        assert_eq!(first.key.serialize_pem(), second.key.serialize_pem());
        second.discard();
        assert_ne!(first.key.serialize_pem(), PendingKey::take_up(path).unwrap().key.serialize_pem());
    }
}
