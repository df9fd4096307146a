//! Traces: spans to a collector by OTLP (`--tracing-endpoint`).

use akri_krustlet_host::spans;
use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

/// How long a collector may take for what it is sent.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the node's end waits for what is not sent yet.
const FLUSH: Duration = Duration::from_secs(2);

/// Where traces go. What is not sent yet is sent when it is dropped.
#[derive(Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        let _ = self.0.shutdown_with_timeout(FLUSH);
    }
}

/// An address of the command line: a collector's gRPC port. TLS is for a collector on this machine to speak.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: http::Uri = url.parse().map_err(|error| format!("{error}; expected HOST:PORT"))?;
    match (uri.scheme_str(), uri.port_u16(), uri.path()) {
        (Some("http"), Some(_), "/" | "") => Ok(url),
        (Some("https"), ..) => {
            Err("spans are sent without TLS: name a collector on this machine, which may speak TLS to others"
                .to_owned())
        }
        _ => Err("expected HOST:PORT of a collector that takes OTLP by gRPC, such as 127.0.0.1:4317".to_owned()),
    }
}

/// A layer that sends a part of the traces, so many of a million, and what keeps it going.
pub(super) fn layer<S>(endpoint: &str, per_million: u32, node: &str) -> anyhow::Result<(impl Layer<S> + use<S>, Traces)>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT);
    let exporter = exporter.build().with_context(|| format!("--tracing-endpoint {endpoint}"))?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(f64::from(per_million) / 1e6)));
    let resource = Resource::builder_empty().with_attributes([
        KeyValue::new("service.name", "akri-krustlet"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("k8s.node.name", node.to_owned()),
    ]);
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_resource(resource.build())
        .with_batch_exporter(Told { exporter, endpoint: endpoint.to_owned(), fails: AtomicBool::new(false) })
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("akri-krustlet"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target(spans::TARGET, LevelFilter::TRACE));
    Ok((layer, Traces(provider)))
}

/// Says once that a collector takes nothing, and when it does again.
#[derive(Debug)]
struct Told {
    exporter: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    fails: AtomicBool,
}

impl SpanExporter for Told {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(spans).await;
        let failed = self.fails.swap(result.is_err(), Ordering::Relaxed);
        match (&result, failed) {
            (Err(error), false) => tracing::warn!(
                endpoint = self.endpoint,
                "the collector of traces takes no spans: {error}; what it does not take is lost, the node runs on"
            ),
            (Ok(()), true) => tracing::info!(endpoint = self.endpoint, "the collector of traces takes spans again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::endpoint;

    #[test]
    fn an_endpoint_is_a_port_without_tls() {
        assert_eq!(endpoint("127.0.0.1:4317").as_deref(), Ok("http://127.0.0.1:4317"));
        assert_eq!(endpoint("http://collector:4317").as_deref(), Ok("http://collector:4317"));
        for (text, what) in [
            ("https://collector:4317", "without TLS"),
            ("collector", "expected HOST:PORT"),
            ("http://collector:4318/v1/traces", "by gRPC"),
            ("a b", "expected HOST:PORT"),
        ] {
            let error = endpoint(text).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
