//! Probes of containers that have a network: by TCP, HTTP and gRPC, in a kubelet's rhythm.
//!
//! # Flow
//! 1. [`Probes::of`] reads what a container's probes say, first of all at admission.
//! 2. When the container is started, [`Probes::begin`] has it count as not started or not ready until its probes have said so.
//! 3. [`Probes::run`] asks, for as long as the container runs, and resolves when it is to be ended. While there is a startup
//!    probe that has not succeeded, the others wait.

mod check;

use self::check::Check;
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::fields::NodeFacts;
use crate::pod::bounded;
use crate::status::{ContainerKind, StatusReporter, Verdict};
use akri_krustlet_runtime::network::NetworkRules;
use akri_krustlet_runtime::network::rules::Protocol;
use k8s_openapi::api::core::v1::{Container, Probe as ApiProbe};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// As events name it.
const READINESS: &str = "Readiness";

/// What is wrong with a probe.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("container {container}: {probe}: {what}")]
pub struct ProbeError {
    container: String,
    probe: &'static str,
    what: String,
}

/// The probes of one container.
#[derive(Debug, Default)]
pub struct Probes {
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
}

/// One probe.
#[derive(Debug, PartialEq)]
struct Probe {
    /// As events name it.
    name: &'static str,
    check: Check,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    /// How many results of one kind in a row count.
    successes: u32,
    failures: u32,
    /// How long the container may take to end; as long as with its pod without it.
    grace_period: Option<Duration>,
}

/// A container that is to be ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Unhealthy {
    /// Which probe says so, as events name it.
    pub probe: &'static str,
    /// How long the container may take to end, if the probe says it.
    pub grace_period: Option<Duration>,
}

impl Probes {
    /// Those that a container has.
    pub fn of(container: &Container, node: &NodeFacts, rules: &NetworkRules) -> Result<Self, ProbeError> {
        let read = |probe: &Option<ApiProbe>, field, name| {
            let failed = |what| ProbeError { container: container.name.clone(), probe: field, what };
            probe.as_ref().map(|probe| Probe::read(probe, name, container, node, rules).map_err(failed)).transpose()
        };
        Ok(Self {
            startup: read(&container.startup_probe, "startupProbe", "Startup")?,
            readiness: read(&container.readiness_probe, "readinessProbe", READINESS)?,
            liveness: read(&container.liveness_probe, "livenessProbe", "Liveness")?,
        })
    }

    /// It has none.
    pub fn is_empty(&self) -> bool {
        self.startup.is_none() && self.readiness.is_none() && self.liveness.is_none()
    }

    /// The container is being started.
    pub fn begin(&self, reporter: &StatusReporter, container: &str) {
        let started = self.startup.is_none();
        reporter.set_verdict(container, Verdict { started, ready: started && self.readiness.is_none() });
    }

    /// Asks until the container is to be ended.
    pub async fn run(
        &self,
        context: &PodContext,
        kind: ContainerKind,
        container: &str,
        rules: &NetworkRules,
    ) -> Unhealthy {
        let since = Instant::now();
        let network = &context.services.network;
        let rounds =
            |probe| Rounds::new(probe, since, |port| network.gives_listening(rules, Protocol::Tcp, Some(port)));
        let started = watch::Sender::new(self.startup.is_none());
        let is_started = || async { drop(started.subscribe().wait_for(|started| *started).await) };
        let failed = |probe: &Probe, output: String| {
            let message = format!("{} probe failed: {output}", probe.name);
            // An event tells it, as often as events do.
            tracing::debug!(pod = context.pod.key(), container, "{message}");
            context.event(kind, container, EventType::Warning, "Unhealthy", message);
        };
        let startup = async {
            if let Some(probe) = &self.startup {
                if !rounds(probe).verdict(&failed).await {
                    return probe.unhealthy();
                }
                let ready = self.readiness.is_none();
                context.reporter.set_verdict(container, Verdict { started: true, ready });
                started.send_replace(true);
            }
            std::future::pending().await
        };
        let readiness = async {
            let Some(probe) = &self.readiness else { return std::future::pending().await };
            is_started().await;
            let mut rounds = rounds(probe);
            loop {
                let ready = rounds.verdict(&failed).await;
                context.reporter.set_verdict(container, Verdict { started: true, ready });
            }
        };
        let liveness = async {
            let Some(probe) = &self.liveness else { return std::future::pending().await };
            is_started().await;
            let mut rounds = rounds(probe);
            while rounds.verdict(&failed).await {}
            probe.unhealthy()
        };
        let unhealthy = tokio::select! {
            unhealthy = startup => unhealthy,
            unhealthy = liveness => unhealthy,
            unhealthy = readiness => unhealthy,
        };
        // Nobody is sent to it while it comes to its end; without a readiness probe it stays as it was, as on a kubelet.
        if self.readiness.is_some() {
            context.reporter.set_verdict(container, Verdict { started: *started.borrow(), ready: false });
        }
        unhealthy
    }
}

impl Probe {
    fn read(
        probe: &ApiProbe,
        name: &'static str,
        container: &Container,
        node: &NodeFacts,
        rules: &NetworkRules,
    ) -> Result<Self, String> {
        let check = Check::read(probe, container, node, rules)?;
        // What the API server fills in; a manifest may leave it out, or write 0 for that.
        let or = |field: &str, value: Option<i32>, default: u32| match value.map(u32::try_from) {
            None | Some(Ok(0)) => Ok(default),
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(format!("{field} is less than 0")),
        };
        let seconds =
            |field, value, default| or(field, value, default).map(|number| Duration::from_secs(number.into()));
        let successes = or("successThreshold", probe.success_threshold, 1)?;
        if successes != 1 && name != READINESS {
            return Err(format!("successThreshold {successes}: only a readinessProbe may have another than 1"));
        }
        let grace_period = probe.termination_grace_period_seconds.filter(|seconds| *seconds >= 0);
        Ok(Self {
            name,
            check,
            initial_delay: seconds("initialDelaySeconds", probe.initial_delay_seconds, 0)?,
            period: seconds("periodSeconds", probe.period_seconds, 10)?,
            timeout: seconds("timeoutSeconds", probe.timeout_seconds, 1)?,
            successes,
            failures: or("failureThreshold", probe.failure_threshold, 3)?,
            grace_period: grace_period.map(bounded),
        })
    }

    fn unhealthy(&self) -> Unhealthy {
        Unhealthy { probe: self.name, grace_period: self.grace_period }
    }

    /// Asks once. An error says what came instead.
    async fn attempt(&self) -> Result<(), String> {
        let late = |_| Err(format!("no answer within {} s", self.timeout.as_secs()));
        tokio::time::timeout(self.timeout, self.check.attempt()).await.unwrap_or_else(late)
    }
}

/// The results of one probe in a row.
struct Rounds<'a> {
    probe: &'a Probe,
    since: Instant,
    ticks: Interval,
    last: Option<bool>,
    row: u32,
    /// Why it is not asked.
    barred: Option<String>,
}

impl<'a> Rounds<'a> {
    /// Of a container that has been running since then, and that may listen on a port or not.
    fn new(probe: &'a Probe, since: Instant, may_listen: impl Fn(u16) -> bool) -> Self {
        let barred = probe.check.port().filter(|port| !may_listen(*port));
        let barred = barred
            .map(|port| format!("the node lets no pod listen on port {port} (--network-ceiling), so nobody is asked"));
        let mut ticks = tokio::time::interval(probe.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self { probe, since, ticks, last: None, row: 0, barred }
    }

    /// The next result that counts.
    async fn verdict(&mut self, failed: impl Fn(&Probe, String)) -> bool {
        loop {
            self.ticks.tick().await;
            if self.since.elapsed() < self.probe.initial_delay {
                continue;
            }
            let result = match self.barred.clone() {
                None => self.probe.attempt().await,
                Some(why) => Err(why),
            };
            let succeeded = result.is_ok();
            if let Err(output) = result {
                failed(self.probe, output);
            }
            self.row = if self.last == Some(succeeded) { self.row.saturating_add(1) } else { 1 };
            self.last = Some(succeeded);
            if self.row >= if succeeded { self.probe.successes } else { self.probe.failures } {
                return succeeded;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tonic::transport::server::TcpIncoming;

    fn node() -> NodeFacts {
        let allocatable = crate::cluster::machine::Capacity::default();
        NodeFacts { name: "n".to_owned(), addresses: vec!["127.0.0.1".to_owned()], allocatable }
    }

    fn container(probe: Value) -> Container {
        let ports = json!([{"name": "web", "containerPort": 8080}]);
        serde_json::from_value(json!({"name": "c", "ports": ports, "livenessProbe": probe})).unwrap()
    }

    fn read(probe: Value) -> Result<Probe, String> {
        let rules: NetworkRules = "listen tcp 1-2000,8080,10000-65535".parse().unwrap();
        let probes = Probes::of(&container(probe), &node(), &rules).map_err(|error| error.to_string())?;
        Ok(probes.liveness.unwrap())
    }

    #[test]
    fn a_probe_is_read_and_what_is_wrong_with_it_is_named() {
        let probe = read(json!({"httpGet": {"port": "web", "path": "healthz?full=1"}, "periodSeconds": 3})).unwrap();
        let url = reqwest::Url::parse("http://127.0.0.1:8080/healthz?full=1").unwrap();
        assert_eq!(probe.check, Check::Http { url, headers: Vec::new() });
        assert_eq!((probe.period, probe.timeout, probe.failures), (Duration::from_secs(3), Duration::from_secs(1), 3));
        let tcp = read(json!({"tcpSocket": {"port": 80, "host": "::1"}, "terminationGracePeriodSeconds": 1})).unwrap();
        assert_eq!(tcp.check, Check::Tcp("::1".to_owned(), 80));
        assert_eq!(tcp.grace_period, Some(Duration::from_secs(1)));
        for (probe, what) in [
            (json!({"tcpSocket": {"port": "other"}}), "no port of this name"),
            (json!({"tcpSocket": {"port": 0}}), "expected 1 to 65535"),
            (json!({"tcpSocket": {"port": 2379}}), "port 2379: the container may not listen on it"),
            (json!({"tcpSocket": {"port": 80}, "periodSeconds": -1}), "periodSeconds is less than 0"),
            (json!({"tcpSocket": {"port": 80}, "successThreshold": 2}), "only a readinessProbe"),
            (json!({"tcpSocket": {"port": 80, "host": "169.254.169.254"}}), "is not this node"),
            (json!({"httpGet": {"port": 80, "scheme": "FTP"}}), "expected HTTP or HTTPS"),
            (json!({"grpc": {"port": 2379}}), "port 2379: the container may not listen on it"),
            (json!({}), "expected one of tcpSocket, httpGet and grpc"),
            (json!({"grpc": {"port": 80}, "tcpSocket": {"port": 80}}), "expected one of"),
        ] {
            let error = read(probe).unwrap_err();
            assert!(error.contains(what) && error.contains("container c: livenessProbe"), "{error}");
        }
    }

    /// Answers requests by these statuses in turn, the last one for ever.
    async fn server(statuses: &'static [&'static str]) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let number = AtomicUsize::new(0);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let status = statuses[number.fetch_add(1, Ordering::Relaxed).min(statuses.len() - 1)];
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn statuses_decide_and_an_answer_elsewhere_is_an_answer() {
        for (status, expected) in [
            ("200 OK", Ok(())),
            ("204 No Content", Ok(())),
            ("302 Found\r\nLocation: http://example.invalid/", Ok(())),
            ("302 Found\r\nLocation: http://127.0.0.1:1/", Ok(())),
            ("302 Found\r\nLocation: /again", Err("10 redirects")),
            ("404 Not Found", Err("status 404")),
            ("503 Service Unavailable", Err("status 503")),
        ] {
            let statuses: &'static [&'static str] = Box::leak(Box::new([status]));
            let probe = read(json!({"httpGet": {"port": server(statuses).await, "host": "127.0.0.1"}})).unwrap();
            match (probe.attempt().await, expected) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(what)) => assert!(error.contains(what), "{error}"),
                (result, _) => panic!("{status}: {result:?}"),
            }
        }
        // Bound, so that nobody else has it, and listened on by nobody.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = held.local_addr().unwrap().port();
        for check in ["tcpSocket", "httpGet", "grpc"] {
            let error = read(json!({check: {"port": closed}})).unwrap().attempt().await.unwrap_err();
            assert!(error.to_lowercase().contains("connection refused"), "{error}");
        }
    }

    async fn listen() -> (TcpIncoming, u16) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (TcpIncoming::from(listener), port)
    }

    async fn serve(router: tonic::transport::server::Router) -> u16 {
        let (incoming, port) = listen().await;
        tokio::spawn(router.serve_with_incoming(incoming));
        port
    }

    /// Something else than grpc.health.v1, with these headers in its answers.
    async fn serve_with(headers: &'static [(&'static str, &'static str)]) -> u16 {
        let with = move |mut answer: http::Response<tonic::body::Body>| {
            for (name, value) in headers {
                answer.headers_mut().insert(*name, value.parse().unwrap());
            }
            answer
        };
        let mut server = tonic::transport::Server::builder().layer(tower::util::MapResponseLayer::new(with));
        let (incoming, port) = listen().await;
        tokio::spawn(server.add_routes(tonic::service::Routes::default()).serve_with_incoming(incoming));
        port
    }

    #[tokio::test]
    async fn a_server_says_by_grpc_which_of_its_services_is_serving() {
        let (health, service) = tonic_health::server::health_reporter();
        health.set_service_status("up", tonic_health::ServingStatus::Serving).await;
        health.set_service_status("down", tonic_health::ServingStatus::NotServing).await;
        let port = serve(tonic::transport::Server::builder().add_service(service)).await;
        let ask = async |port: u16, service: Option<&str>| {
            read(json!({"grpc": {"port": port, "service": service}})).unwrap().attempt().await
        };
        assert_eq!(ask(port, None).await, Ok(()), "the server as a whole");
        assert_eq!(ask(port, Some("up")).await, Ok(()));
        let place = format!("grpc.health.v1 at 127.0.0.1:{port}");
        let down = format!("{place}: status of service \"down\" NOT_SERVING");
        assert_eq!(ask(port, Some("down")).await, Err(down));
        let unknown = ask(port, Some("other")).await.unwrap_err();
        assert!(unknown.starts_with(&format!("{place}: NotFound of service \"other\"")), "{unknown}");
        // One that serves something else.
        let unimplemented = ask(serve_with(&[]).await, None).await.unwrap_err();
        assert!(unimplemented.contains("Unimplemented"), "{unimplemented}");
        // One whose answer a client of gRPC does not survive, and one that would write into logs.
        let hostile = ask(serve_with(&[("grpc-status", "2"), ("grpc-status-details-bin", "!")]).await, None).await;
        assert!(hostile.unwrap_err().contains("Unknown"));
        let talks: &[_] = &[("grpc-status", "2"), ("grpc-message", "a%0AWARN b%1B[2J")];
        let said = ask(serve_with(talks).await, None).await.unwrap_err();
        assert!(said.contains("a\\nWARN b\\u{1b}[2J"), "{said}");
        assert!(read(json!({"grpc": {"port": 80, "service": "x".repeat(257)}})).unwrap_err().contains("257 bytes"));
        // And one that speaks HTTP/1 only.
        let error = ask(server(&["200 OK"]).await, None).await.unwrap_err();
        assert!(error.contains("grpc.health.v1"), "{error}");
    }

    #[tokio::test]
    async fn as_many_results_in_a_row_count_as_the_probe_says() {
        const STATUSES: &[&str] = &["500 No", "200 OK", "500 No", "500 No", "200 OK", "200 OK"];
        let port = server(STATUSES).await;
        let mut probe = read(json!({"httpGet": {"port": port}, "failureThreshold": 2, "periodSeconds": 0})).unwrap();
        assert_eq!(probe.period, Duration::from_secs(10), "0 is as good as nothing");
        probe.successes = 2;
        let mut rounds = Rounds::new(&probe, Instant::now(), |_| true);
        rounds.ticks = tokio::time::interval(Duration::from_millis(1));
        let failures = AtomicUsize::new(0);
        let failed = |_: &Probe, _| {
            failures.fetch_add(1, Ordering::Relaxed);
        };
        assert!(!rounds.verdict(failed).await);
        assert_eq!(failures.load(Ordering::Relaxed), 3, "each of them is told");
        assert!(rounds.verdict(failed).await);
        assert!(rounds.verdict(failed).await, "and from then on each one counts");
        let mut barred = Rounds::new(&probe, Instant::now(), |_| false);
        barred.ticks = tokio::time::interval(Duration::from_millis(1));
        assert!(!barred.verdict(|_: &Probe, why: String| assert!(why.contains("--network-ceiling"))).await);
    }
}
