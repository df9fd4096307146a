//! Who the node is towards the API server.
//!
//! # Flow
//! With `--kubeconfig`, the user in it is the node. With a bootstrap kubeconfig:
//! 1. A client certificate of an earlier run that is valid and accepted is used.
//! 2. Without one, a CertificateSigningRequest is made with the bootstrap token and waited for.
//! 3. The certificate is renewed before it ends ([`Identity::keep`]).
//!
//! ```text
//! <data>/pki/client.pem    certificate and key, 0600
//! <data>/pki/client.key    the key of a request that is under way, 0600
//! <data>/kubeconfig        the node's identity for kubectl; used when the bootstrap file is gone
//! ```

use super::certificate::{Certificate, CertificateError, renewal_part, write_secret};
use super::connection::{Connection, ConnectionError, FIRST_ANSWER, code, describe};
use super::signing::{Purpose, SigningError, SigningRequest};
use akri_krustlet_host::BackOff;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Where the node's identity comes from.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    /// A kubeconfig whose user is the node.
    Kubeconfig(PathBuf),
    /// A kubeconfig with a bootstrap token.
    Bootstrap(PathBuf),
}

/// Why the node cannot be somebody.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// See [`ConnectionError`].
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// See [`SigningError`].
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// See [`CertificateError`].
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The kubeconfig is of somebody else.
    #[error(
        "kubeconfig {}: its user is {user}, and not system:node:{node}: NodeRestriction lets a node be only itself; name the node with --node-name, or use --bootstrap-file", path.display()
    )]
    OtherUser {
        /// The kubeconfig.
        path: PathBuf,
        /// Who it is.
        user: String,
        /// The node.
        node: String,
    },
}

/// The node's identity and the connection that is made with it.
#[derive(Debug)]
pub struct Identity {
    /// The connection.
    pub connection: Arc<Connection>,
    node: String,
    pki: PathBuf,
    /// The certificate that the node asked for itself, and with which token; one in a user's kubeconfig is the user's to renew.
    asked: Option<(Certificate, PathBuf)>,
}

/// Pauses after a renewal that failed.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MOST_RETRY: Duration = Duration::from_secs(60);

impl Identity {
    /// Takes up the identity of `node`, asking for it if need be. Waits for approval as long as it takes.
    pub async fn take_up(source: &IdentitySource, node: &str, data: &Path) -> Result<Self, IdentityError> {
        let pki = data.join("pki");
        let bootstrap = match source {
            IdentitySource::Kubeconfig(path) => {
                let connection = Connection::from_kubeconfig(path).await?;
                check_user(&connection, path, node).await?;
                let connection = Arc::new(connection);
                return Ok(Self { connection, node: node.to_owned(), pki, asked: None });
            }
            IdentitySource::Bootstrap(path) => path,
        };
        let own = data.join("kubeconfig");
        let first = match Connection::from_kubeconfig(bootstrap).await {
            // The token has done its work and the file may be gone, as kubeadm's is.
            Err(ConnectionError::Kubeconfig { .. }) if !bootstrap.exists() && own.exists() => {
                Connection::from_kubeconfig(&own).await?
            }
            first => first?,
        };
        let path = pki.join("client.pem");
        if let Some((certificate, connection)) = earlier(&first, &path, node).await? {
            let (connection, asked) = (Arc::new(connection), Some((certificate, bootstrap.clone())));
            return Ok(Self { connection, node: node.to_owned(), pki, asked });
        }
        let request = request(node, &pki, &first);
        let certificate = request.certificate(&first.client()).await?;
        certificate.write(&path)?;
        tracing::info!(until = %certificate.not_after, "the node has its client certificate");
        write_kubeconfig(&own, &first, &path)?;
        let connection = Arc::new(first.with_identity(&certificate)?);
        Ok(Self { connection, node: node.to_owned(), pki, asked: Some((certificate, bootstrap.clone())) })
    }

    /// Renews the certificate, again and again. One of a user's kubeconfig is the user's to renew, and is read again then.
    pub async fn keep(mut self) {
        let Some((mut certificate, bootstrap)) = self.asked.take() else { return self.connection.follow_files().await };
        let mut received = None;
        loop {
            super::sleep_until(certificate.renew_at(renewal_part())).await;
            if !certificate.is_valid() && received.take().is_some_and(super::is_just_now) {
                super::clock_is_wrong(certificate.not_after).await;
                continue;
            }
            certificate = self.renewed(&certificate, &bootstrap).await;
            if let Err(error) = certificate.write(&self.pki.join("client.pem")) {
                tracing::error!(%error, "cannot write the renewed client certificate");
            }
            if let Err(error) = self.connection.replace_identity(&certificate) {
                tracing::error!(%error, "cannot use the renewed client certificate");
            }
            tracing::info!(until = %certificate.not_after, "the node's client certificate is renewed");
            received = Some(Instant::now());
        }
    }

    async fn renewed(&self, certificate: &Certificate, bootstrap: &Path) -> Certificate {
        let mut back_off = BackOff::new(FIRST_RETRY, MOST_RETRY);
        loop {
            let error = match self.try_renew(certificate, bootstrap).await {
                Ok(renewed) => return renewed,
                Err(error) => error,
            };
            tracing::error!(until = %certificate.not_after, %error, "cannot renew the node's client certificate; trying again");
            tokio::time::sleep(back_off.pause()).await;
        }
    }

    /// As the node, for as long as it can be that, and then as one that is new.
    async fn try_renew(&self, certificate: &Certificate, bootstrap: &Path) -> Result<Certificate, IdentityError> {
        let request = request(&self.node, &self.pki, &self.connection);
        let client = self.connection.client();
        tokio::select! {
            renewed = request.certificate(&client), if certificate.is_valid() => return Ok(renewed?),
            () = super::sleep_until(certificate.not_after) => {}
        }
        tracing::warn!(
            until = %certificate.not_after,
            "the node's client certificate has ended and there is no new one; asking with the bootstrap token in {}, which has to be a valid one",
            bootstrap.display()
        );
        Ok(request.certificate(&Connection::from_kubeconfig(bootstrap).await?.client()).await?)
    }
}

fn request(node: &str, pki: &Path, connection: &Connection) -> SigningRequest {
    let (node, pending, server) = (node.to_owned(), pki.join("client.key"), connection.url());
    SigningRequest { node, purpose: Purpose::Client, pending, server }
}

/// The certificate of an earlier run, if it is still good for this node in this cluster.
async fn earlier(
    first: &Connection,
    path: &Path,
    node: &str,
) -> Result<Option<(Certificate, Connection)>, IdentityError> {
    let certificate = match Certificate::read(path) {
        Ok(Some(certificate)) => certificate,
        Ok(None) => return Ok(None),
        Err(CertificateError::Io { path, source }) => return Err(CertificateError::Io { path, source }.into()),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the node's client certificate cannot be used; asking for a new one");
            return Ok(None);
        }
    };
    let no_more = |why: String| {
        tracing::warn!(path = %path.display(), "the node's client certificate {why}; asking for a new one");
        Ok(None)
    };
    if !certificate.is_valid() {
        return no_more(format!("was valid until {} only", certificate.not_after));
    }
    if certificate.common_name != format!("system:node:{node}") {
        return no_more(format!("is of {}", certificate.common_name));
    }
    let connection = first.with_identity(&certificate)?;
    match tokio::time::timeout(FIRST_ANSWER, Api::<Node>::all(connection.client()).get_opt(node)).await {
        Ok(Err(error)) if code(&error) == Some(401) => no_more(format!("is not accepted: {}", describe(&error))),
        // Whoever does not answer now may do so later.
        _ => Ok(Some((certificate, connection))),
    }
}

/// A kubeconfig of an administrator would work until the first request that only the node may make.
async fn check_user(connection: &Connection, path: &Path, node: &str) -> Result<(), IdentityError> {
    use k8s_openapi::api::authentication::v1::SelfSubjectReview;
    let reviews: Api<SelfSubjectReview> = Api::all(connection.client());
    let (parameters, asked) = (Default::default(), SelfSubjectReview::default());
    let review = match tokio::time::timeout(FIRST_ANSWER, reviews.create(&parameters, &asked)).await {
        Ok(Ok(review)) => review,
        Err(_) => {
            tracing::warn!(
                server = connection.url(),
                "cannot ask the API server who the node is: no answer within {} s",
                FIRST_ANSWER.as_secs()
            );
            return Ok(());
        }
        Ok(Err(error)) if code(&error) == Some(401) => {
            let (server, message) = (connection.url(), describe(&error));
            return Err(SigningError::Unauthorized { server, message }.into());
        }
        Ok(Err(error)) => {
            tracing::warn!(
                server = connection.url(),
                "cannot ask the API server who the node is: {}",
                describe(&error)
            );
            return Ok(());
        }
    };
    let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default();
    if user == format!("system:node:{node}") {
        return Ok(());
    }
    Err(IdentityError::OtherUser { path: path.to_owned(), user, node: node.to_owned() })
}

fn write_kubeconfig(path: &Path, connection: &Connection, certificate: &Path) -> Result<(), CertificateError> {
    use base64::Engine as _;
    let authorities: String = connection
        .authorities()
        .iter()
        .map(|der| {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
        })
        .collect();
    let authorities = base64::engine::general_purpose::STANDARD.encode(authorities);
    let mut cluster = serde_json::json!({"server": connection.url().trim_end_matches('/')});
    // As the bootstrap file has it: kubectl refuses an authority for a server that is not to be checked.
    match connection.checks() {
        (true, _) => cluster["insecure-skip-tls-verify"] = true.into(),
        (false, _) => cluster["certificate-authority-data"] = authorities.into(),
    }
    if let (_, Some(name)) = connection.checks() {
        cluster["tls-server-name"] = name.into();
    }
    if let Some(proxy) = connection.proxy() {
        cluster["proxy-url"] = proxy.into();
    }
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "node", "user": {"client-certificate": certificate, "client-key": certificate}}],
        "contexts": [{"name": "node", "context": {"cluster": "cluster", "user": "node"}}],
    });
    write_secret(path, format!("{kubeconfig:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[tokio::test]
    async fn the_nodes_kubeconfig_checks_the_api_server_as_the_bootstrap_file_does() {
        let directory = tempfile::tempdir().unwrap();
        let authority = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap().cert.pem();
        let written = async |cluster: Value| {
            let (bootstrap, own) = (directory.path().join("bootstrap"), directory.path().join("own"));
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            });
            std::fs::write(&bootstrap, config.to_string()).unwrap();
            let connection = Connection::from_kubeconfig(&bootstrap).await.unwrap();
            write_kubeconfig(&own, &connection, Path::new("client.pem")).unwrap();
            let written: Value = serde_json::from_slice(&std::fs::read(&own).unwrap()).unwrap();
            written["clusters"][0]["cluster"].clone()
        };
        let server = "https://127.0.0.1:6443";
        let skips = json!({"server": server, "insecure-skip-tls-verify": true});
        assert_eq!(written(skips.clone()).await, skips);
        let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, authority);
        let named = json!({"server": server, "certificate-authority-data": data, "tls-server-name": "other.example",
            "proxy-url": "http://127.0.0.1:3128/"});
        let told = written(named.clone()).await;
        assert_eq!(told["tls-server-name"], "other.example");
        assert_eq!(told["proxy-url"], "http://127.0.0.1:3128/");
        assert_eq!(told["insecure-skip-tls-verify"], Value::Null);
        assert!(told["certificate-authority-data"].is_string(), "{told}");
    }
}
