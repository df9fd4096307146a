//! Whether somebody may ask what they ask.
//!
//! The API server decides, by a SubjectAccessReview about a subresource of this node, as a kubelet maps its paths. One thing is
//! finer than with a kubelet: a container's log is given to whoever may get `nodes/log`, not only `nodes/proxy`, so that the
//! right to read logs need not be the right to everything.

use super::answers::Answers;
use super::authentication::User;
use http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use std::time::Duration;

/// How long an answer counts; a kubelet's defaults.
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);

type Question = (User, &'static str, &'static str);

/// Asks the API server, and remembers what it said.
pub struct Authorizer {
    client: kube::Client,
    node: String,
    answers: Answers<Question, bool>,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The subresources of the node of which one must be allowed for a path.
pub fn subresources(path: &str) -> &'static [&'static str] {
    match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
        "containerLogs" => &["log", "proxy"],
        "pods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "spec" => &["spec"],
        _ => &["proxy"],
    }
}

/// The verb that a method is.
pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

impl Authorizer {
    /// For this node.
    pub fn new(client: kube::Client, node: String) -> Self {
        Self { client, node, answers: Answers::new(|allowed| *allowed, ALLOWED, DENIED) }
    }

    /// Whether `user` may do this. An error means that the API server did not say.
    pub async fn allows(&self, user: &User, method: &Method, path: &str) -> Result<bool, String> {
        let verb = verb(method);
        for subresource in subresources(path) {
            let question = (user.clone(), verb, *subresource);
            let allowed = match self.answers.get(&question) {
                Some(allowed) => allowed,
                None => {
                    let allowed = self.ask(&question).await?;
                    self.answers.remember(question, allowed);
                    allowed
                }
            };
            if allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ask(&self, (user, verb, subresource): &Question) -> Result<bool, String> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some((*subresource).to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        match answer {
            Ok(review) => Ok(review.status.is_some_and(|status| status.allowed)),
            Err(error) => {
                let error = crate::cluster::connection::describe(&error);
                Err(format!("the API server was not able to check the permission: {error}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_subresources_of_the_node_and_methods_are_verbs() {
        assert_eq!(subresources("/containerLogs/ns/pod/c"), ["log", "proxy"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        for path in ["/exec/ns/pod/c", "/", "", "/unknown", "/run/ns/p/c", "//containerLogs"] {
            let expected: &[&str] = if path.contains("Logs") { &["log", "proxy"] } else { &["proxy"] };
            assert_eq!(subresources(path), expected, "{path}");
        }
        assert_eq!((verb(&Method::GET), verb(&Method::HEAD), verb(&Method::POST)), ("get", "get", "create"));
    }
}
