//! The node's lease: who holds the node's name, and that it lives.

use super::connection::{FIRST_ANSWER, describe};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a lease counts; a kubelet's default.
const LEASE_SECONDS: i32 = 40;

/// Annotations of the lease: which installation holds it.
const INSTANCE: &str = "akri-krustlet/instance";
const HOST: &str = "akri-krustlet/host";

/// Why the node may not be the node of this name.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another machine is.
    #[error(
        "another node named {name} runs on {host} and renewed its lease {age} s ago; stop it, or choose another --node-name"
    )]
    Taken {
        /// The name.
        name: String,
        /// Where it says it runs.
        host: String,
        /// Seconds.
        age: i64,
    },
}

/// The lease of a node.
#[derive(Clone, Debug)]
pub struct NodeLease {
    /// The node's name, which is the lease's, too.
    pub name: String,
    /// Which installation this is.
    pub instance: String,
    /// The machine, for people.
    pub host: String,
}

impl NodeLease {
    /// Makes sure that no other machine holds this name. One that has just stopped is waited for; an API server that does
    /// not answer is no reason not to start.
    pub async fn claim(&self, client: impl Fn() -> Client) -> Result<(), ClaimError> {
        let mut seen: Option<Timestamp> = None;
        let started = tokio::time::Instant::now();
        loop {
            let asked = tokio::time::timeout(FIRST_ANSWER, leases(&client()).get_opt(&self.name)).await;
            let lease = match asked {
                Ok(Ok(Some(lease))) => lease,
                Ok(Ok(None)) => return Ok(()),
                failed => {
                    let what = failed.map_or_else(
                        |_| format!("no answer within {} s", FIRST_ANSWER.as_secs()),
                        |error| error.err().map(|error| describe(&error)).unwrap_or_default(),
                    );
                    tracing::warn!("cannot see whether another node has this name: {what}");
                    // One that had it a moment ago may have it still, until its lease has run out.
                    let holds =
                        |seen: Timestamp| Timestamp::now().as_second() - seen.as_second() < i64::from(LEASE_SECONDS);
                    if seen.is_some_and(holds) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                    return Ok(());
                }
            };
            let Some((age, renewed)) = self.holder_age(&lease) else { return Ok(()) };
            if seen.is_some_and(|seen| renewed > seen) {
                return Err(self.taken(&lease, age));
            }
            // Whatever its time says, which may be that of a wrong clock.
            if started.elapsed() > Duration::from_secs(LEASE_SECONDS.unsigned_abs().into()) {
                return Ok(());
            }
            if seen.is_none() {
                tracing::warn!(
                    "a node named {} on {} renewed its lease {age} s ago; waiting until it is clear that it has gone",
                    self.name,
                    annotation(&lease, HOST)
                );
            }
            seen = Some(renewed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The lease as the API server has it.
    pub async fn found(&self, client: &Client) -> Result<Option<Lease>, kube::Error> {
        leases(client).get_opt(&self.name).await
    }

    /// Seconds since another installation renewed the lease, and when; `None` if it is ours or has run out.
    fn holder_age(&self, lease: &Lease) -> Option<(i64, Timestamp)> {
        let instance = annotation(lease, INSTANCE);
        let renewed = lease.spec.as_ref()?.renew_time.as_ref()?.0;
        let age = Timestamp::now().as_second() - renewed.as_second();
        let holds = !instance.is_empty() && instance != self.instance && age < i64::from(LEASE_SECONDS);
        holds.then_some((age, renewed))
    }

    fn taken(&self, lease: &Lease, age: i64) -> ClaimError {
        ClaimError::Taken { name: self.name.clone(), host: annotation(lease, HOST), age }
    }

    /// Renews it: `lease` as it was told last, or as it is.
    pub async fn renew(&self, client: &Client, lease: Option<Lease>) -> Result<Lease, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let lease = match lease {
            Some(lease) => Some(lease),
            None => leases(client).get_opt(&self.name).await?,
        };
        let Some(mut lease) = lease else {
            return leases(client).create(&PostParams::default(), &self.new_lease(client, now).await).await;
        };
        if let Some((age, _)) = self.holder_age(&lease) {
            tracing::error!("{}", self.taken(&lease, age));
        }
        lease.metadata.annotations.get_or_insert_default().extend(self.lease_annotations());
        lease.metadata.managed_fields = None;
        let spec = lease.spec.get_or_insert_default();
        spec.renew_time = Some(now);
        spec.holder_identity = Some(self.name.clone());
        spec.lease_duration_seconds = Some(LEASE_SECONDS);
        leases(client).replace(&self.name, &PostParams::default(), &lease).await
    }

    async fn new_lease(&self, client: &Client, now: MicroTime) -> Lease {
        // With an owner, the lease goes with the Node.
        let node = Api::<Node>::all(client.clone()).get_opt(&self.name).await.ok().flatten();
        let owner = node.and_then(|node| node.metadata.uid).map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.name.clone(),
            uid,
            ..OwnerReference::default()
        });
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some("kube-node-lease".to_owned()),
                annotations: Some(self.lease_annotations()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    fn lease_annotations(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(INSTANCE.to_owned(), self.instance.clone()), (HOST.to_owned(), self.host.clone())])
    }
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), "kube-node-lease")
}

fn annotation(lease: &Lease, name: &str) -> String {
    let annotations = lease.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(name)).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use std::sync::{Arc, Mutex};

    /// An API server that knows one lease, and what it was sent.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<(Option<Lease>, Vec<Method>)>>);

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
            });
            Client::new(service, "default")
        }

        async fn answer(&self, request: Request<Body>) -> Response<Body> {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let mut state = self.0.lock().unwrap();
            let is_lease = parts.uri.path().contains("/leases");
            if is_lease {
                state.1.push(parts.method.clone());
            }
            if is_lease && parts.method != Method::GET {
                state.0 = Some(serde_json::from_slice(&body).unwrap());
            }
            let found = state.0.as_ref().filter(|_| is_lease);
            let (code, body) = match found {
                Some(lease) => (StatusCode::OK, serde_json::to_vec(lease).unwrap()),
                None => (
                    StatusCode::NOT_FOUND,
                    br#"{"kind":"Status","status":"Failure","code":404,"reason":"NotFound","message":""}"#.to_vec(),
                ),
            };
            Response::builder().status(code).body(Body::from(body)).unwrap()
        }

        /// The lease as it is, with another life of its holder.
        fn renewed_before(&self, seconds: i64) {
            let mut state = self.0.lock().unwrap();
            let spec = state.0.as_mut().unwrap().spec.as_mut().unwrap();
            let at = Timestamp::from_second(Timestamp::now().as_second() - seconds).unwrap();
            spec.renew_time = Some(MicroTime(at));
        }

        fn methods(&self) -> Vec<Method> {
            std::mem::take(&mut self.0.lock().unwrap().1)
        }
    }

    fn lease_of(instance: &str) -> NodeLease {
        NodeLease { name: "n".to_owned(), instance: instance.to_owned(), host: format!("host of {instance}") }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_made_once_and_renewed_by_what_is_known_of_it() {
        let server = Server::default();
        let lease = lease_of("a");
        let made = lease.renew(&server.client(), None).await.unwrap();
        assert_eq!(server.methods(), [Method::GET, Method::POST]);
        assert_eq!(annotation(&made, HOST), "host of a");
        lease.renew(&server.client(), Some(made)).await.unwrap();
        assert_eq!(server.methods(), [Method::PUT], "what is known is not asked for");
        lease.renew(&server.client(), None).await.unwrap();
        assert_eq!(server.methods(), [Method::GET, Method::PUT]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_taken_while_another_machine_renews_its_lease() {
        let server = Server::default();
        lease_of("a").claim(|| server.client()).await.unwrap();
        lease_of("a").renew(&server.client(), None).await.unwrap();
        lease_of("a").claim(|| server.client()).await.unwrap();
        // Of another one that has ended, the lease has run out, or is waited for until it has.
        server.renewed_before(i64::from(LEASE_SECONDS) + 1);
        lease_of("b").claim(|| server.client()).await.unwrap();
        server.renewed_before(12);
        let (waiting, started) = (lease_of("b"), tokio::time::Instant::now());
        let runs_out = async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            server.renewed_before(i64::from(LEASE_SECONDS) + 1);
        };
        let (claimed, ()) = tokio::join!(waiting.claim(|| server.client()), runs_out);
        claimed.unwrap();
        assert_eq!(started.elapsed().as_secs(), 3, "it is looked at each second");
        // One that lives renews its lease meanwhile.
        server.renewed_before(12);
        let renews = async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            server.renewed_before(2);
        };
        let other = lease_of("b");
        let (claimed, ()) = tokio::join!(other.claim(|| server.client()), renews);
        let error = claimed.unwrap_err().to_string();
        assert!(error.contains("host of a"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_keeps_no_node_from_starting() {
        let client = || {
            Client::new(
                tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, kube::Error>>()),
                "default",
            )
        };
        lease_of("a").claim(client).await.unwrap();
    }
}
