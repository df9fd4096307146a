//! Traces: what a collector is sent. It is this test, or the OpenTelemetry collector that `OTEL_COLLECTOR` names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;
#[path = "../../devices/tests/plugin/mod.rs"]
mod plugin;

use fixture::registry::{Access, Registry};
use fixture::{Node, component, guest, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use plugin::Plugin;
use serde_json::json;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    resource: Arc<Mutex<String>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            *self.resource.lock().unwrap() = format!("{:?}", of_resource.resource);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn serve(&self, port: u16) -> tokio::task::JoinHandle<()> {
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() })
    }

    /// The first span of this name whose attributes have a text.
    fn span(&self, name: &str, attribute: &str) -> Option<Span> {
        let spans = self.spans.lock().unwrap();
        spans.iter().find(|span| span.name == name && format!("{:?}", span.attributes).contains(attribute)).cloned()
    }

    fn wait_for(&self, node: &Node, name: &str, attribute: &str) -> Span {
        let mut found = None;
        let seen = wait_for(|| {
            found = self.span(name, attribute);
            found.is_some()
        });
        let names: Vec<_> = self.spans.lock().unwrap().iter().map(|span| span.name.clone()).collect();
        assert!(seen, "no span {name} {attribute}: {names:?}\n{}", node.log());
        found.unwrap()
    }
}

fn node(port: u16, registry: &Registry) -> Node {
    let mut node = Node::prepare();
    node.arguments = vec![
        "--tracing-endpoint",
        format!("127.0.0.1:{port}").leak(),
        "--insecure-registries",
        registry.address.clone().leak(),
    ];
    node.run();
    node
}

/// A handler from a registry, and a broker with a device.
async fn pods(node: &Node, registry: &Registry) {
    registry.push_module("typed:v1", &std::fs::read(component("debug-echo-typed")).unwrap()).await;
    let pod = |name: &str, image: String, resources: serde_json::Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"restartPolicy": "Never",
            "containers": [{"name": "main", "image": image, "resources": resources, "args": ["exit:0"]}]}})
    };
    let handler = pod("handler", format!("{}/typed:v1", registry.address), json!({}));
    node.write_manifest("handler.json", &handler.to_string());
    assert!(wait_for(|| fixture::serves(&node.path("plugins/kubelet.sock"))), "{}", node.log());
    let plugin = Plugin::serve(&node.path("plugins"), "example.com/a", &["1"]);
    plugin.register().await.unwrap();
    let of_file = format!("fs://{}", guest("workload").display());
    node.write_manifest("broker.json", &pod("broker", of_file, json!({"limits": {"example.com/a": "1"}})).to_string());
    node.wait_for_pod("broker", "done", |pod| pod["status"]["phase"] == "Succeeded");
    // One that cannot be had.
    let missing = pod("missing", format!("{}/none:v1", registry.address), json!({}));
    node.write_manifest("missing.json", &missing.to_string());
    node.wait_for_socket("debugEcho");
    let (_stream, list) = node.first_list("debugEcho", "descriptions: [a]").await;
    assert_eq!(list, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_start_and_a_handlers_call_are_traces() {
    let port = control_plane::port::free().unwrap();
    let collector = Collector::default();
    let _server = collector.serve(port).await;
    let registry = Registry::start(Access::Public);
    let node = node(port, &registry);
    pods(&node, &registry).await;
    for (pod, children) in [
        ("handler", &[("image pull", "typed:v1"), ("module compile", "sha256:"), ("container prepare", "main")][..]),
        ("broker", &[("devices allocate", ""), ("volumes mount", "")]),
    ] {
        let start = collector.wait_for(&node, "pod start", &format!("\"{pod}\""));
        assert!(start.parent_span_id.is_empty() && start.end_time_unix_nano > start.start_time_unix_nano);
        for (child, attribute) in children {
            let is_child = || {
                let spans = collector.spans.lock().unwrap();
                spans.iter().any(|span| {
                    span.name == *child
                        && span.parent_span_id == start.span_id
                        && span.trace_id == start.trace_id
                        && format!("{:?}", span.attributes).contains(attribute)
                })
            };
            assert!(wait_for(is_child), "{child} of {pod}: {:#?}", collector.spans.lock().unwrap());
        }
    }
    let pull = collector.wait_for(&node, "image pull", "none:v1");
    let status = pull.status.unwrap();
    assert_eq!(status.code, 2, "an error: {status:?}");
    assert!(status.message.contains("has no such image"), "{status:?}");
    let discover = collector.wait_for(&node, "discover", "debugEcho");
    let step = collector.wait_for(&node, "step", "debugEcho");
    assert_eq!((&step.parent_span_id, &step.trace_id), (&discover.span_id, &discover.trace_id));
    let resource = collector.resource.lock().unwrap().clone();
    for what in ["service.name", "akri-krustlet", "k8s.node.name", "test-node"] {
        assert!(resource.contains(what), "{what}: {resource}");
    }
    // The log has none of it.
    assert!(!node.log().contains("pod start"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_is_told_once_and_costs_nothing_else() {
    let port = control_plane::port::free().unwrap();
    let registry = Registry::start(Access::Public);
    let mut node = node(port, &registry);
    pods(&node, &registry).await;
    node.wait_for_log("the collector of traces takes no spans");
    let collector = Collector::default();
    let server = collector.serve(port).await;
    node.remove_manifest("broker.json");
    let of_file = format!("fs://{}", guest("workload").display());
    let late = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late"}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "main", "image": of_file, "args": ["exit:0"]}]}});
    node.write_manifest("late.json", &late.to_string());
    collector.wait_for(&node, "pod start", "\"late\"");
    node.wait_for_log("the collector of traces takes spans again");
    assert_eq!(node.log().matches("takes no spans").count(), 1, "{}", node.log());
    // What was not sent when the node ended is sent then.
    let calls = || collector.spans.lock().unwrap().iter().filter(|span| span.name == "discover").count();
    let before = calls();
    let (first, _) = node.first_list("debugEcho", "descriptions: [first]").await;
    assert!(wait_for(|| calls() > before));
    let sent = calls();
    let (last, _) = node.first_list("debugEcho", "descriptions: [last]").await;
    assert_eq!(node.terminate(), Some(0));
    assert_eq!(calls(), sent + 1, "{:#?}", collector.spans.lock().unwrap());
    drop((first, last));
    server.abort();
}

/// As the collector prints what it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn the_opentelemetry_collector_takes_them() {
    let Some(program) = std::env::var_os("OTEL_COLLECTOR") else {
        println!("skipped: OTEL_COLLECTOR names no OpenTelemetry collector");
        return;
    };
    let port = control_plane::port::free().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let text = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n\
         exporters: {{debug: {{verbosity: detailed}}}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let log = directory.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let mut collector = Command::new(program)
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let serves = wait_for(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let registry = Registry::start(Access::Public);
    let node = node(port, &registry);
    pods(&node, &registry).await;
    let names = ["pod start", "image pull", "module compile", "devices allocate", "discover", "step"];
    let has = |name: &&str| said().lines().any(|line| line.contains("Name ") && line.trim_end().ends_with(*name));
    let all = wait_for(|| names.iter().all(has));
    let _ = collector.kill();
    let _ = collector.wait();
    assert!(serves && all, "{}\n{}", said(), node.log());
}
