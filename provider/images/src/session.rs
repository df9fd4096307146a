//! Requests to one registry, with one set of credentials.
//!
//! # Guarantees
//! - Whoever asks for credentials gets them, wherever it asks: at `/v2/`, at a manifest or at a blob. Whoever does not ask gets
//!   none.
//! - Credentials go to the registry and to the server of tokens that it names, over TLS unless the registry itself is spoken to
//!   without; to no address that an answer redirects to.

use crate::credentials::Credential;
use crate::pull_error::PullError;
use akri_krustlet_host::one_line;
use http_auth::ChallengeRef;
use oci_client::Reference;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode, Url};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);
/// Longest pause within an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest answer of a server of tokens, and longest explanation of an error, in bytes.
const MOST_TOKEN: usize = 1 << 20;
const MOST_ERROR: usize = 16 << 10;
/// What of an explanation is shown, in letters.
const MOST_SHOWN: usize = 300;
/// As a browser has it.
const MOST_REDIRECTS: usize = 10;

/// What is asked of a registry.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) target: Target<'a>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: &'a [u8],
    /// How long it may take; by default as long as something comes.
    pub(crate) within: Option<Duration>,
}

/// Where a request goes.
pub(crate) enum Target<'a> {
    /// Below the repository.
    Path(&'a str),
    /// Where the registry said.
    Url(Url),
}

impl<'a> Request<'a> {
    /// Without headers and body.
    pub(crate) fn new(method: Method, path: &'a str) -> Self {
        Self { method, target: Target::Path(path), headers: HeaderMap::new(), body: &[], within: None }
    }
}

/// A registry, for one pull: tokens are not shared between pulls of different pods.
pub(crate) struct Session {
    http: reqwest::Client,
    /// For uploads, in which the registry is silent until all has come.
    uploads: reqwest::Client,
    /// For the server of tokens, which gets the credentials: where it redirects to gets nothing.
    tokens: reqwest::Client,
    /// As an image names it.
    name: String,
    repository: String,
    credential: Credential,
    /// Registries on this machine are spoken to without TLS if they have none, as by containerd.
    base: Mutex<Url>,
    may_fall_back: bool,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Session {
    pub(crate) fn new(image: &Reference, credential: Credential, insecure: &[String]) -> Result<Self, PullError> {
        let name = image.resolve_registry().to_owned();
        let registry = name.clone();
        let protocol = |message: String| PullError::Protocol { registry: registry.clone(), message };
        let is_insecure = insecure.contains(&name);
        let scheme = if is_insecure { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{name}/v2/")).map_err(|error| protocol(error.to_string()))?;
        let is_local = is_private(&base);
        let client = |redirects, is_silent: bool| {
            let client = reqwest::Client::builder().connect_timeout(CONNECT).redirect(redirects);
            let client = if is_silent { client } else { client.read_timeout(SILENCE) };
            let client = client.user_agent(concat!("akri-krustlet/", env!("CARGO_PKG_VERSION")));
            client.build().map_err(|error| protocol(describe(&error)))
        };
        // Not from outside to what only this machine reaches, and not out of TLS.
        let redirects = || {
            Policy::custom(move |attempt| {
                let leaves_tls =
                    attempt.previous().iter().any(|url| url.scheme() == "https") && attempt.url().scheme() != "https";
                if attempt.previous().len() > MOST_REDIRECTS {
                    attempt.error("too many redirects")
                } else if leaves_tls && !is_local {
                    attempt.error("it redirects to an address without TLS")
                } else if is_private(attempt.url()) && !is_local {
                    attempt.error("it redirects to an address of this machine or its link")
                } else {
                    attempt.follow()
                }
            })
        };
        let (http, uploads) = (client(redirects(), false)?, client(redirects(), true)?);
        let tokens = client(Policy::none(), false)?;
        let authorization = match &credential {
            Credential::Bearer(token) => Some(secret(format!("Bearer {token}"))),
            _ => None,
        };
        Ok(Self {
            http,
            uploads,
            tokens,
            may_fall_back: !is_insecure && is_this_machine(&base),
            repository: image.repository().to_owned(),
            name,
            credential,
            base: Mutex::new(base),
            authorization: Mutex::new(authorization.transpose().map_err(protocol)?),
        })
    }

    /// Asks for `<repository>/<path>`, of it what follows `from` bytes.
    pub(crate) async fn get(&self, path: &str, accept: &[&str], from: u64) -> Result<Response, PullError> {
        let mut headers = HeaderMap::new();
        for accept in accept {
            headers.append(ACCEPT, HeaderValue::from_str(accept).map_err(|error| self.protocol(error.to_string()))?);
        }
        if from > 0 {
            headers.insert(
                RANGE,
                HeaderValue::from_str(&format!("bytes={from}-")).map_err(|error| self.protocol(error.to_string()))?,
            );
        }
        self.request(Request { headers, ..Request::new(Method::GET, path) }).await
    }

    /// Sends a request, once more with what the registry asks for if it refuses. An answer that is no success is an error.
    pub(crate) async fn request(&self, request: Request<'_>) -> Result<Response, PullError> {
        let mut answer = self.send(&request).await?;
        // Only what the registry asks for itself: a redirect leads to whoever.
        let is_registry = answer.url().origin() == self.base().origin();
        if answer.status() == StatusCode::UNAUTHORIZED && is_registry && self.answer_challenge(answer.headers()).await?
        {
            answer = self.send(&request).await?;
        }
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => {
                let is_registry = answer.url().origin() == self.base().origin();
                let message = if is_registry { explanation(answer).await } else { "elsewhere".to_owned() };
                Err(match status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.unauthorized(message),
                    StatusCode::NOT_FOUND => PullError::NotFound { registry: self.name.clone() },
                    _ if is_temporary(status) => {
                        self.temporary(format!("it answered {} {message}", status.as_u16()).trim_end().to_owned())
                    }
                    _ => self.protocol(format!("it answered {} {message}", status.as_u16()).trim_end().to_owned()),
                })
            }
        }
    }

    async fn send(&self, request: &Request<'_>) -> Result<Response, PullError> {
        let base = self.base();
        let send = |base: Url| {
            let url = match &request.target {
                Target::Path(path) => base.join(&format!("{}/{path}", self.repository)),
                Target::Url(url) => Ok(url.clone()),
            };
            let url = url.map_err(|error| self.protocol(error.to_string()))?;
            // Where uploads go may be elsewhere, and what is for the registry is not sent there.
            let is_registry = url.origin() == base.origin();
            let http = if request.within.is_some() { &self.uploads } else { &self.http };
            let mut outgoing = http.request(request.method.clone(), url).headers(request.headers.clone());
            if let Some(within) = request.within {
                outgoing = outgoing.timeout(within);
            }
            if !request.body.is_empty() {
                outgoing = outgoing.body(request.body.to_vec());
            }
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(authorization) = authorization.filter(|_| is_registry) {
                outgoing = outgoing.header(AUTHORIZATION, authorization);
            }
            Ok::<_, PullError>(outgoing.send())
        };
        match send(base.clone())?.await {
            Err(error) if self.may_fall_back && base.scheme() == "https" && has_no_tls(&error) => {
                let mut plain = base;
                if plain.set_scheme("http").is_err() {
                    return Err(self.failed(&error));
                }
                let answer = send(plain.clone())?.await.map_err(|_| self.failed(&error))?;
                // So does a server answer that speaks TLS after all.
                if answer.status() == StatusCode::BAD_REQUEST {
                    return Err(self.failed(&error));
                }
                *self.base.lock().unwrap_or_else(PoisonError::into_inner) = plain;
                Ok(answer)
            }
            answer => answer.map_err(|error| self.failed(&error)),
        }
    }

    /// Where an answer says that an upload goes on.
    pub(crate) fn location(&self, answer: &Response) -> Result<Url, PullError> {
        let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| self.protocol("it does not say where an upload goes".to_owned()))?;
        let url = answer.url().join(location).map_err(|error| self.protocol(format!("{location:?}: {error}")))?;
        let base = self.base();
        if base.scheme() == "https" && url.scheme() != "https" {
            return Err(self.protocol(format!("it wants an upload to go to an address without TLS, {url}")));
        }
        // As redirects: not from outside to what only this machine reaches.
        if is_private(&url) && !is_private(&base) {
            return Err(
                self.protocol(format!("it wants an upload to go to an address of this machine or its link, {url}"))
            );
        }
        Ok(url)
    }

    /// Makes ready what a registry asks for that refused; false if there is nothing more to be given.
    async fn answer_challenge(&self, headers: &HeaderMap) -> Result<bool, PullError> {
        let texts: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).collect();
        let challenges: Vec<_> =
            texts.iter().filter_map(|text| http_auth::parse_challenges(text).ok()).flatten().collect();
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        let authorization = match (&self.credential, of("bearer"), of("basic")) {
            // It was given, and was not good enough.
            (Credential::Bearer(_), ..) => return Ok(false),
            (_, Some(challenge), _) => {
                let token = self.token(challenge).await?;
                secret(format!("Bearer {token}"))
            }
            (Credential::Basic(user, password), None, Some(_)) => secret(basic(user, password)),
            _ => return Ok(false),
        };
        let authorization = authorization.map_err(|message| self.protocol(message))?;
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).replace(authorization.clone());
        Ok(known.is_none_or(|known| known != authorization))
    }

    /// A token of the server of tokens that the registry names.
    async fn token(&self, challenge: &ChallengeRef<'_>) -> Result<String, PullError> {
        let parameter = |name: &str| {
            let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.to_unescaped())
        };
        let realm = parameter("realm")
            .ok_or_else(|| self.protocol("it asks for a token and does not say of whom".to_owned()))?;
        let url =
            Url::parse(&realm).map_err(|error| self.protocol(format!("its server of tokens {realm:?}: {error}")))?;
        if url.scheme() != "https" && self.base().scheme() == "https" {
            return Err(
                self.protocol(format!("its server of tokens {realm} is without TLS, and is given no credentials"))
            );
        }
        let scope = parameter("scope").filter(|scope| !scope.is_empty());
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut query = vec![("scope", scope)];
        query.extend(parameter("service").map(|service| ("service", service)));
        let http = &self.tokens;
        let request = match &self.credential {
            Credential::Basic(user, password) => http.get(url).query(&query).basic_auth(user, Some(password)),
            Credential::Identity(token) => {
                query.extend([("grant_type", "refresh_token".to_owned()), ("client_id", "akri-krustlet".to_owned())]);
                query.push(("refresh_token", token.clone()));
                http.post(url).form(&query)
            }
            Credential::Anonymous | Credential::Bearer(_) => http.get(url).query(&query),
        };
        let answer = request.send().await.map_err(|error| self.failed(&error))?;
        let status = answer.status();
        if !status.is_success() {
            let message = explanation(answer).await;
            return Err(match status {
                _ if is_temporary(status) => {
                    self.temporary(format!("its server of tokens answered {} {message}", status.as_u16()))
                }
                _ => self.unauthorized(message),
            });
        }
        let body = self.body(answer, MOST_TOKEN).await?;
        let token: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| self.protocol("its server of tokens gave none".to_owned()))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        token.ok_or_else(|| self.protocol("its server of tokens gave none".to_owned()))
    }

    /// Makes an attempt, and others after these pauses as long as it fails for the moment.
    pub(crate) async fn retried<T, F>(
        &self,
        pauses: &[Duration],
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, PullError>
    where
        F: Future<Output = Result<T, PullError>>,
    {
        for pause in pauses {
            match attempt().await {
                Err(error) if error.is_temporary() => {
                    tracing::info!(registry = self.name(), "{error}; trying again");
                    tokio::time::sleep(*pause).await;
                }
                result => return result,
            }
        }
        attempt().await
    }

    /// A short answer in whole.
    pub(crate) async fn body(&self, mut answer: Response, most: usize) -> Result<Vec<u8>, PullError> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.failed(&error))? {
            if body.len() + chunk.len() > most {
                return Err(self.protocol(format!("an answer of more than {most} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn base(&self) -> Url {
        self.base.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn temporary(&self, message: String) -> PullError {
        PullError::Temporary { registry: self.name.clone(), message }
    }

    pub(crate) fn protocol(&self, message: String) -> PullError {
        PullError::Protocol { registry: self.name.clone(), message }
    }

    fn unauthorized(&self, message: String) -> PullError {
        let credentials = match self.credential {
            Credential::Anonymous => "to serve this without credentials",
            _ => "the credentials for it",
        };
        let message = if message.is_empty() { "it answered 401".to_owned() } else { message };
        PullError::Unauthorized { registry: self.name.clone(), credentials, message }
    }

    pub(crate) fn failed(&self, error: &reqwest::Error) -> PullError {
        if error.is_builder() { self.protocol(describe(error)) } else { self.temporary(describe(error)) }
    }
}

#[derive(serde::Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(serde::Deserialize)]
struct ErrorAnswer {
    errors: Vec<ErrorEntry>,
}

#[derive(serde::Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    message: Option<String>,
}

/// What a registry says of an error, shortened.
async fn explanation(mut answer: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MOST_ERROR {
            body.truncate(MOST_ERROR);
            break;
        }
    }
    let text = match serde_json::from_slice::<ErrorAnswer>(&body) {
        Ok(answer) => {
            let of = |entry: ErrorEntry| entry.message.filter(|message| !message.is_empty()).unwrap_or(entry.code);
            answer.errors.into_iter().map(of).collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    one_line(text.trim(), MOST_SHOWN)
}

fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error()
}

/// An error with its causes, without the URL, in which a signature may be.
fn describe(error: &reqwest::Error) -> String {
    let mut message = match error.url() {
        Some(url) => error.to_string().replace(&format!(" for url ({url})"), ""),
        None => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

fn secret(value: String) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&value).map_err(|_| "credentials that cannot be sent".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn address_of(url: &Url) -> Option<IpAddr> {
    match url.host_str().unwrap_or_default().trim_matches(['[', ']']) {
        "localhost" => Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        host => host.parse().ok(),
    }
}

fn is_this_machine(url: &Url) -> bool {
    address_of(url).is_some_and(|address| address.is_loopback())
}

/// An address that is this machine's, or of its link, such as a cloud's metadata server.
fn is_private(url: &Url) -> bool {
    address_of(url).is_some_and(|address| match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified(),
    })
}

/// Nobody speaks TLS there. A certificate that is not trusted is another matter.
fn has_no_tls(error: &reqwest::Error) -> bool {
    error.is_connect() && !describe(error).contains("certificate")
}
