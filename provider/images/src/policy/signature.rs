//! Signatures of images, where cosign puts them: under a tag made of the image's digest, and as referrers of the image.

use super::sha256;
use crate::pull_error::PullError;
use crate::registry::Registry;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

/// Of the layers of a signature under a tag.
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation with the signature itself.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What a signature of that kind says of itself.
const COSIGN: &str = "cosign container image signature";
/// Of a bundle among the referrers.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.";
/// What the statement in a bundle is about, if it is a signature.
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
const STATEMENT: &str = "application/vnd.in-toto+json";
/// Largest payload, and largest bundle, in bytes.
const MOST_PAYLOAD: usize = 1 << 20;

/// One signature that a registry has of an image.
#[derive(Debug)]
pub(super) struct Signature {
    /// What was signed.
    pub message: Vec<u8>,
    pub signature: Vec<u8>,
    /// What it says.
    says: Says,
}

#[derive(Debug)]
enum Says {
    /// A payload of cosign.
    Payload(Vec<u8>),
    /// A statement of in-toto.
    Statement(Vec<u8>),
}

/// All that the registry has; what cannot be read is none.
pub(super) async fn of_image(registry: &Registry, digest: &str, most: usize) -> Result<Vec<Signature>, PullError> {
    let Some(digits) = sha256(digest) else { return Ok(Vec::new()) };
    let mut signatures = Vec::new();
    if let Some(manifest) = registry.json(&format!("manifests/sha256-{digits}.sig")).await? {
        for layer in list(&manifest["layers"]).iter().take(most) {
            if layer["mediaType"] == SIMPLE_SIGNING
                && let Some(signature) = layer["annotations"][SIGNATURE].as_str()
                && let Ok(signature) = STANDARD.decode(signature)
                && let Some(payload) = registry.small_blob(text(&layer["digest"]), MOST_PAYLOAD).await?
            {
                signatures.push(Signature { message: payload.clone(), signature, says: Says::Payload(payload) });
            }
        }
    }
    // Registries that do not know referrers have them in an index under a tag.
    let referrers = match registry.json(&format!("referrers/{digest}")).await? {
        Some(index) => Some(index),
        None => registry.json(&format!("manifests/sha256-{digits}")).await?,
    };
    let referrers = referrers.unwrap_or_default();
    let is_bundle = |of: &&Value| text(&of["artifactType"]).starts_with(BUNDLE);
    for referrer in list(&referrers["manifests"]).iter().filter(is_bundle).take(most) {
        let Some(manifest) = registry.json(&format!("manifests/{}", text(&referrer["digest"]))).await? else {
            continue;
        };
        let is_bundle = |layer: &&Value| text(&layer["mediaType"]).starts_with(BUNDLE);
        if let Some(layer) = list(&manifest["layers"]).iter().find(is_bundle)
            && let Some(bundle) = registry.small_blob(text(&layer["digest"]), MOST_PAYLOAD).await?
        {
            signatures.extend(Signature::of_bundle(&bundle));
        }
    }
    Ok(signatures)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
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
    /// Those of a bundle.
    fn of_bundle(bundle: &[u8]) -> Vec<Self> {
        let envelope = serde_json::from_slice(bundle).ok().and_then(|bundle: Bundle| bundle.dsse_envelope);
        let Some(Envelope { payload, payload_type, signatures }) = envelope else { return Vec::new() };
        let Ok(payload) = STANDARD.decode(payload) else { return Vec::new() };
        if payload_type != STATEMENT {
            return Vec::new();
        }
        // What DSSE signs: the type and the payload with their lengths.
        let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
        let message = [head.as_bytes(), &payload].concat();
        let decoded = signatures.iter().filter_map(|signature| STANDARD.decode(&signature.sig).ok());
        let signed = |signature| Self { message: message.clone(), signature, says: Says::Statement(payload.clone()) };
        decoded.map(signed).collect()
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
                match list(&statement["subject"]).iter().any(is_subject) {
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
            Signature { message: Vec::new(), signature: Vec::new(), says: Says::Payload(text.into_bytes()) }
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
        assert_eq!((signed.len(), signed[0].is_of(&digest)), (1, Ok(())));
        assert!(signed[0].message.starts_with(b"DSSEv1 28 application/vnd.in-toto+json "));
        assert!(signed[0].is_of("sha256:0").is_err());
        let attested = bundle("https://spdx.dev/Document", STATEMENT);
        assert!(attested[0].is_of(&digest).unwrap_err().contains("spdx.dev"));
        assert!(bundle(SIGNED, "text/plain").is_empty());
        assert!(Signature::of_bundle(b"{}").is_empty() && Signature::of_bundle(b"nonsense").is_empty());
    }
}
