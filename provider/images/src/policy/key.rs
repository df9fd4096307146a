//! Public keys, as cosign and OpenSSL write them.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use ed25519_dalek::{Signature, VerifyingKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;
use std::path::{Path, PathBuf};

type Algorithms = &'static [&'static dyn VerificationAlgorithm];

/// The kinds of keys, by their object identifiers (DER), and what is verified with them. cosign before 2.6 hashes for P-384 by SHA-256.
const KINDS: [(&[u8], Algorithms); 4] = [
    // id-ecPublicKey, prime256v1.
    (b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07", &[&ECDSA_P256_SHA256_ASN1]),
    // id-ecPublicKey, secp384r1.
    (
        b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22",
        &[&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1],
    ),
    (ED25519_IDENTIFIER, &[&ED25519]),
    // rsaEncryption.
    (b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", &[&RSA_PKCS1_2048_8192_SHA256]),
];
/// id-Ed25519. The key itself is the last 32 bytes.
const ED25519_IDENTIFIER: &[u8] = b"\x06\x03\x2b\x65\x70";
/// The identifiers are in the first bytes: a sequence, in it a sequence.
const HEAD: usize = 32;

/// A key of the policy.
pub(super) struct PublicKey {
    path: PathBuf,
    algorithms: Algorithms,
    key: SubjectPublicKeyInfoDer<'static>,
    fingerprint: String,
    is_ed25519: bool,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("path", &self.path).field("fingerprint", &self.fingerprint).finish()
    }
}

impl PublicKey {
    pub(super) fn read(path: &Path, text: &[u8]) -> Result<Self, String> {
        let key = SubjectPublicKeyInfoDer::from_pem_slice(text)
            .map_err(|_| "it has no public key (-----BEGIN PUBLIC KEY-----), as cosign.pub has".to_owned())?;
        let head = &key[..key.len().min(HEAD)];
        let kind = KINDS.iter().find(|(identifier, _)| head.windows(identifier.len()).any(|part| part == *identifier));
        let (identifier, algorithms) =
            kind.ok_or("its key is of no kind that is known: ECDSA P-256 or P-384, Ed25519, RSA")?;
        let parsed = |algorithm: &&'static dyn VerificationAlgorithm| ParsedPublicKey::new(*algorithm, &*key).is_ok();
        if !algorithms.iter().all(parsed) {
            return Err("its key is malformed".to_owned());
        }
        let fingerprint = crate::digest::hex(&Sha256::digest(&*key));
        Ok(Self { path: path.to_owned(), algorithms, key, fingerprint, is_ed25519: *identifier == ED25519_IDENTIFIER })
    }

    /// The file's name, for messages.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// SHA-256 of the key, in hexadecimal digits.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verifies = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &*self.key).verify(message, signature).is_ok()
        };
        self.algorithms.iter().any(verifies) || self.verifies_prehashed(message, signature)
    }

    /// Ed25519ph: cosign signs what it has hashed with such keys, since 2.6.
    fn verifies_prehashed(&self, message: &[u8], signature: &[u8]) -> bool {
        let (true, Ok(signature)) = (self.is_ed25519, Signature::from_slice(signature)) else { return false };
        let key = self.key.last_chunk().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let hash = || Sha512::new_with_prefix(message);
        key.is_some_and(|key| key.verify_prehashed_strict(hash(), None, &signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::PublicKeyX509Der;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RsaKeyPair,
    };
    use base64::Engine as _;

    fn pem(der: &[u8]) -> Vec<u8> {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n")).into_bytes()
    }

    fn der(key: &impl aws_lc_rs::encoding::AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
        let der: PublicKeyX509Der<'static> = key.as_der().unwrap();
        der.as_ref().to_vec()
    }

    #[test]
    fn each_kind_of_key_verifies_what_it_has_signed_and_nothing_else() {
        let random = SystemRandom::new();
        let mut signed = Vec::new();
        for algorithm in [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING] {
            let pair = EcdsaKeyPair::generate(algorithm).unwrap();
            signed.push((der(pair.public_key()), pair.sign(&random, b"text").unwrap().as_ref().to_vec()));
        }
        let pair = Ed25519KeyPair::generate().unwrap();
        signed.push((der(pair.public_key()), pair.sign(b"text").as_ref().to_vec()));
        // The same kind of key, hashed first.
        let pair = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let key = [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], pair.verifying_key().as_bytes()].concat();
        let signature = pair.sign_prehashed(Sha512::new_with_prefix(b"text"), None).unwrap();
        signed.push((key, signature.to_vec()));
        let pair = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &random, b"text", &mut signature).unwrap();
        signed.push((der(pair.public_key()), signature));
        for (number, (key, signature)) in signed.iter().enumerate() {
            let key = PublicKey::read(Path::new("/etc/cosign.pub"), &pem(key)).unwrap();
            assert!(key.verifies(b"text", signature), "{number}");
            assert!(!key.verifies(b"another", signature) && !key.verifies(b"text", b""), "{number}");
            let other = &signed[(number + 1) % signed.len()].1;
            assert!(!key.verifies(b"text", other), "{number}");
            assert_eq!((key.name().as_str(), key.fingerprint().len()), ("cosign.pub", 64));
        }
        for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(PublicKey::read(Path::new("x"), text.as_bytes()).is_err());
        }
    }
}
