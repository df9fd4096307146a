//! Who asks.

use super::answers::Answers;
use akri_krustlet_host::TokenBucket;
use http::HeaderMap;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A user as the API server knows them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// UID, if the API server gave one.
    pub uid: Option<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// What else the authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why nobody is known to ask.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No credentials, or none of this cluster.
    Unknown,
    /// The API server did not say.
    Unanswered(String),
    /// Too many ask with tokens of nobody.
    Busy,
}

/// How long an answer about a token counts, good or bad; a kubelet's defaults.
const KNOWN: Duration = Duration::from_secs(120);
const UNKNOWN: Duration = Duration::from_secs(10);
/// Tokens that are asked about at once.
const ASKING: usize = 8;
/// Tokens of nobody that are asked about at once for one address, and how many each second after that. From an address that
/// sends more of them, a good token that is not known passes no sooner.
const STRANGERS: (f64, f64) = (20.0, 2.0);
/// Addresses that are kept apart; the others share.
const MOST_ADDRESSES: usize = 1024;
/// Longest token, in bytes.
const MOST_TOKEN: usize = 16 << 10;

/// Tells who asks.
pub struct Authenticator {
    client: kube::Client,
    verifier: Arc<LenientVerifier>,
    /// Whose a token is, by its hash.
    tokens: Answers<[u8; 32], Option<User>>,
    asking: Semaphore,
    /// What is left for tokens that turn out to be nobody's, by the client's address.
    strangers: Mutex<HashMap<IpAddr, TokenBucket>>,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Asks `client` about tokens, and `verifier` about certificates.
    pub fn new(client: kube::Client, verifier: Arc<LenientVerifier>) -> Self {
        Self {
            client,
            verifier,
            tokens: Answers::new(Option::is_some, KNOWN, UNKNOWN),
            asking: Semaphore::new(ASKING),
            strangers: Mutex::default(),
        }
    }

    /// The user of a request: by the certificate of its connection, else by its bearer token.
    pub async fn user(
        &self,
        peer: IpAddr,
        chain: &[CertificateDer<'static>],
        headers: &HeaderMap,
    ) -> Result<User, Refusal> {
        if let Some(user) = self.verifier.user(chain) {
            return Ok(user);
        }
        let header = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && token.len() <= MOST_TOKEN => {
                self.user_of_token(peer, token.trim()).await
            }
            _ => Err(Refusal::Unknown),
        }
    }

    async fn user_of_token(&self, peer: IpAddr, token: &str) -> Result<User, Refusal> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.tokens.get(&key) {
            return known.ok_or(Refusal::Unknown);
        }
        let _permit = self.asking.acquire().await;
        if let Some(known) = self.tokens.get(&key) {
            return known.ok_or(Refusal::Unknown);
        }
        // Anybody can send tokens: each one that is not known would cost the API server a request.
        if self.with_bucket(peer, |bucket| bucket.available() < 1.0) {
            return Err(Refusal::Busy);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let reviewed = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = match reviewed {
            Ok(review) => review.status.unwrap_or_default(),
            Err(error) => {
                let error = crate::cluster::connection::describe(&error);
                return Err(Refusal::Unanswered(format!("the API server was not able to check the token: {error}")));
            }
        };
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        self.tokens.remember(key, user.clone());
        if user.is_none() {
            self.with_bucket(peer, |bucket| bucket.spend(1.0));
        }
        user.ok_or(Refusal::Unknown)
    }

    fn with_bucket<T>(&self, peer: IpAddr, of: impl FnOnce(&mut TokenBucket) -> T) -> T {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() >= MOST_ADDRESSES {
            strangers.retain(|_, bucket| bucket.available() < STRANGERS.0);
        }
        let is_full = strangers.len() >= MOST_ADDRESSES && !strangers.contains_key(&peer);
        let key = if is_full { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { peer };
        of(strangers.entry(key).or_insert_with(|| TokenBucket::new(STRANGERS.0, STRANGERS.1)))
    }
}

/// Lets a connection come about with any certificate, or none: one that is not of the cluster is no identity, and is told so
/// by HTTP's 401 as a kubelet tells it. That the client has the certificate's key is verified.
#[derive(Debug)]
pub struct LenientVerifier {
    /// Of the authorities of the moment.
    authorities: RwLock<Arc<dyn ClientCertVerifier>>,
    /// Of those at the start: it checks signatures, which does not depend on them.
    signatures: Arc<dyn ClientCertVerifier>,
}

impl LenientVerifier {
    /// Identities are certificates that these authorities (DER) signed for clients.
    pub fn new(authorities: &[Vec<u8>]) -> Result<Arc<Self>, String> {
        let first = Self::verifier(authorities)?;
        Ok(Arc::new(Self { authorities: RwLock::new(first.clone()), signatures: first }))
    }

    /// From now on, identities are what these authorities signed.
    pub fn replace(&self, authorities: &[Vec<u8>]) -> Result<(), String> {
        let verifier = Self::verifier(authorities)?;
        *self.authorities.write().unwrap_or_else(PoisonError::into_inner) = verifier;
        Ok(())
    }

    fn verifier(authorities: &[Vec<u8>]) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(CertificateDer::from(authority.clone())).map_err(|error| error.to_string())?;
        }
        if roots.is_empty() {
            return Err("there are none: name a file of them with --client-ca-file".to_owned());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            // Clients with several certificates would choose by these; a changed file would not reach them.
            .clear_root_hint_subjects()
            .build();
        built.map(|verifier| verifier as Arc<dyn ClientCertVerifier>).map_err(|error| error.to_string())
    }

    /// Common name and organizations of a certificate that an authority of the cluster signed and that is valid now.
    pub(super) fn user(&self, chain: &[CertificateDer<'static>]) -> Option<User> {
        let (first, others) = chain.split_first()?;
        let verifier = self.authorities.read().unwrap_or_else(PoisonError::into_inner).clone();
        verifier.verify_client_cert(first, others, UnixTime::now()).ok()?;
        let (_, certificate) = X509Certificate::from_der(first).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned));
        let groups = groups.chain(["system:authenticated".to_owned()]).collect();
        Some(User { name, uid: None, groups, extra: BTreeMap::new() })
    }
}

impl ClientCertVerifier for LenientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signatures.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A certificate authority, and a client certificate of it.
    pub(crate) fn authority(user: &str) -> (rcgen::Certificate, CertificateDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("authority of {user}"));
        let certificate = parameters.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(parameters, key);
        let mut of_client = rcgen::CertificateParams::default();
        of_client.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        of_client.distinguished_name.push(rcgen::DnType::CommonName, user);
        let client = of_client.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
        (certificate, client.der().clone())
    }

    fn bearer(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_of_nobody_are_asked_about_seldom_and_by_address() {
        let reviews = Arc::new(AtomicUsize::new(0));
        let counted = reviews.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                let good = String::from_utf8_lossy(&body).contains("\"good");
                let status = serde_json::json!({"authenticated": good, "user": {"username": "somebody"}});
                let review = serde_json::json!({"spec": {"token": ""}, "status": status});
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(serde_json::to_vec(&review).unwrap())))
            }
        });
        let (certificate, _) = authority("somebody");
        let verifier = LenientVerifier::new(&[certificate.der().to_vec()]).unwrap();
        let authenticator = Authenticator::new(kube::Client::new(service, "default"), verifier);
        let (flood, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let ask = async |peer: IpAddr, token: String| authenticator.user(peer, &[], &bearer(&token)).await;
        let mut refused = Vec::new();
        for number in 0..100 {
            refused.push(ask(flood, format!("bad-{number}")).await.unwrap_err());
        }
        assert_eq!(reviews.load(Ordering::SeqCst), 20);
        assert_eq!(refused.iter().filter(|refusal| **refusal == Refusal::Busy).count(), 80);
        // The same one again costs nothing, and another address is served.
        assert_eq!(ask(flood, "bad-0".to_owned()).await, Err(Refusal::Unknown));
        assert_eq!(ask(other, "good".to_owned()).await.unwrap().name, "somebody");
        assert_eq!(reviews.load(Ordering::SeqCst), 21);
        // A token that is known passes from where the bad ones come, one that is not when there is room again.
        assert_eq!(ask(flood, "good".to_owned()).await.unwrap().name, "somebody");
        assert_eq!(ask(flood, "good-2".to_owned()).await, Err(Refusal::Busy));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ask(flood, "good-2".to_owned()).await.unwrap().name, "somebody");
    }
}
