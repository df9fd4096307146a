//! Signatures of images, where cosign puts them: under a tag made of the image's digest, and as referrers of the image.

use super::sha256;
use crate::pull_error::PullError;
use crate::registry::Registry;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

/// Of the layers of a signature under a tag.
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// What a signature of that kind says of itself.
const COSIGN: &str = "cosign container image signature";
/// Of a bundle among the referrers.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.";
/// What the statement in a bundle is about, if it is a signature.
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
const STATEMENT: &str = "application/vnd.in-toto+json";
/// Largest payload, and largest bundle, in bytes: those of cosign have a few thousand.
const MOST_PAYLOAD: usize = 64 << 10;
/// Largest list of them, in bytes.
const MOST_LIST: usize = 256 << 10;

/// One signature that a registry has of an image.
#[derive(Debug)]
pub(super) struct Signature {
    pub signature: Vec<u8>,
    /// What it says.
    says: Says,
}

#[derive(Debug)]
enum Says {
    /// A payload of cosign.
    Payload(Vec<u8>),
    /// A statement of in-toto, in an envelope (DSSE).
    Statement(Vec<u8>),
}

/// What matters of a manifest with signatures.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "dev.cosignproject.cosign/signature")]
    signature: Option<String>,
}

/// What matters of a list of referrers.
#[derive(Deserialize)]
struct Referrers {
    #[serde(default)]
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: String,
    #[serde(default)]
    artifact_type: String,
}

/// The first ones that the registry has; what cannot be read is none.
pub(super) async fn of_image(registry: &Registry, digest: &str, most: usize) -> Result<Vec<Signature>, PullError> {
    let Some(digits) = sha256(digest) else { return Ok(Vec::new()) };
    let mut signatures = Vec::new();
    let under_tag = registry.json::<Manifest>(&format!("manifests/sha256-{digits}.sig"), MOST_LIST).await?;
    for layer in under_tag.map(|manifest| manifest.layers).unwrap_or_default().iter().take(most) {
        if layer.media_type == SIMPLE_SIGNING
            && let Some(signature) = layer.annotations.signature.as_deref().and_then(decoded)
            && let Some(payload) = registry.small_blob(&layer.digest, MOST_PAYLOAD).await?
        {
            signatures.push(Signature { signature, says: Says::Payload(payload) });
        }
    }
    // Registries that do not know referrers have them in an index under a tag.
    let referrers = match registry.json::<Referrers>(&format!("referrers/{digest}"), MOST_LIST).await? {
        Some(index) => Some(index),
        None => registry.json::<Referrers>(&format!("manifests/sha256-{digits}"), MOST_LIST).await?,
    };
    let referrers = referrers.map(|index| index.manifests).unwrap_or_default();
    for referrer in referrers.iter().filter(|of| of.artifact_type.starts_with(BUNDLE)).take(most) {
        let manifest = registry.json::<Manifest>(&format!("manifests/{}", referrer.digest), MOST_LIST).await?;
        let layers = manifest.map(|manifest| manifest.layers).unwrap_or_default();
        if let Some(layer) = layers.iter().find(|layer| layer.media_type.starts_with(BUNDLE))
            && let Some(bundle) = registry.small_blob(&layer.digest, MOST_PAYLOAD).await?
        {
            signatures.extend(Signature::of_bundle(&bundle));
        }
    }
    signatures.truncate(most);
    Ok(signatures)
}

/// Base64; nothing is no signature.
fn decoded(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok().filter(|bytes| !bytes.is_empty())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

impl Signature {
    /// That of a bundle: cosign makes one.
    fn of_bundle(bundle: &[u8]) -> Option<Self> {
        let bundle: Bundle = serde_json::from_slice(bundle).ok()?;
        let Envelope { payload, payload_type, signatures } = bundle.dsse_envelope?;
        let payload = decoded(&payload).filter(|_| payload_type == STATEMENT)?;
        let [EnvelopeSignature { sig }] = &signatures[..] else { return None };
        Some(Self { signature: decoded(sig)?, says: Says::Statement(payload) })
    }

    /// What was signed.
    pub(super) fn message(&self) -> Cow<'_, [u8]> {
        match &self.says {
            Says::Payload(payload) => Cow::Borrowed(payload),
            // The type and the payload, with their lengths.
            Says::Statement(payload) => {
                let head = format!("DSSEv1 {} {STATEMENT} {} ", STATEMENT.len(), payload.len());
                Cow::Owned([head.as_bytes(), payload].concat())
            }
        }
    }

    /// Whether it says that this image is signed; if not, what it says.
    pub(super) fn is_of(&self, digest: &str) -> Result<(), String> {
        match &self.says {
            Says::Payload(payload) => {
                let payload: Value = serde_json::from_slice(payload).map_err(|_| "which says nothing".to_owned())?;
                let critical = &payload["critical"];
                if critical["type"] != COSIGN {
                    return Err(format!("which is a {}, not a signature of an image", critical["type"]));
                }
                match text(&critical["image"]["docker-manifest-digest"]) {
                    of if of == digest => Ok(()),
                    other => Err(format!("of another image, {other:?}")),
                }
            }
            Says::Statement(statement) => {
                let statement: Value =
                    serde_json::from_slice(statement).map_err(|_| "which says nothing".to_owned())?;
                if statement["predicateType"] != SIGNED {
                    return Err(format!("which is about {}, not a signature of an image", statement["predicateType"]));
                }
                let digits = sha256(digest);
                let is_subject = |subject: &Value| digits.is_some_and(|digits| subject["digest"]["sha256"] == digits);
                match statement["subject"].as_array().is_some_and(|subjects| subjects.iter().any(is_subject)) {
                    true => Ok(()),
                    false => Err("of another image".to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DIGITS: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_signature_is_of_the_image_that_it_names() {
        let digest = format!("sha256:{DIGITS}");
        let payload = |kind: &str, digest: &str| {
            let text = json!({"critical": {"type": kind, "image": {"docker-manifest-digest": digest}}}).to_string();
            Signature { signature: Vec::new(), says: Says::Payload(text.into_bytes()) }
        };
        assert_eq!(payload(COSIGN, &digest).is_of(&digest), Ok(()));
        assert!(payload(COSIGN, "sha256:other").is_of(&digest).unwrap_err().contains("another image"));
        assert!(payload("cosign attestation", &digest).is_of(&digest).unwrap_err().contains("not a signature"));
    }

    #[test]
    fn a_bundle_is_read_and_an_attestation_is_no_signature() {
        let digest = format!("sha256:{DIGITS}");
        let bundle = |predicate: &str, kind: &str| {
            let statement = json!({
                "_type": "https://in-toto.io/Statement/v1", "predicateType": predicate,
                "subject": [{"digest": {"sha256": DIGITS}}],
            });
            let envelope = json!({
                "payload": STANDARD.encode(statement.to_string()), "payloadType": kind,
                "signatures": [{"sig": STANDARD.encode("s")}],
            });
            Signature::of_bundle(json!({"mediaType": "x", "dsseEnvelope": envelope}).to_string().as_bytes())
        };
        let signed = bundle(SIGNED, STATEMENT);
        let signed = signed.unwrap();
        assert_eq!(signed.is_of(&digest), Ok(()));
        assert!(signed.message().starts_with(b"DSSEv1 28 application/vnd.in-toto+json "));
        assert!(signed.is_of("sha256:0").is_err());
        let attested = bundle("https://spdx.dev/Document", STATEMENT).unwrap();
        assert!(attested.is_of(&digest).unwrap_err().contains("spdx.dev"));
        assert!(bundle(SIGNED, "text/plain").is_none());
        assert!(Signature::of_bundle(b"{}").is_none() && Signature::of_bundle(b"nonsense").is_none());
        // Thousands of signatures of one payload are none of cosign's.
        let many = json!({"dsseEnvelope": {"payload": STANDARD.encode("x"), "payloadType": STATEMENT, "signatures": vec![json!({"sig": ""}); 1000]}});
        assert!(Signature::of_bundle(many.to_string().as_bytes()).is_none());
    }
}
