//! Spans to an OpenTelemetry collector, over HTTP. Behind the feature `otlp`.

use super::trace::Parent;
use anyhow::{Context, Result};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

/// Sends spans from a thread of its own.
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Sends what is still held back; a collector that is gone is none of a server's trouble.
    pub(super) fn end(self) {
        let _ = self.0.shutdown();
    }
}

/// The layer that hears of spans, and what sends them.
///
/// # Errors
/// For an endpoint that is no URL.
pub(super) fn layer<S>(endpoint: &str) -> Result<(OpenTelemetryLayer<S, SdkTracer>, Exporter)>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .context("--otlp-endpoint")?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name("kiln").build())
        .build();
    let tracer = provider.tracer("kiln");
    let layer = tracing_opentelemetry::layer().with_tracer(tracer);
    Ok((layer, Exporter(provider)))
}

/// Makes a span part of its caller's trace.
pub(super) fn adopt(span: &Span, parent: Parent<'_>) {
    let (Ok(trace), Ok(id)) = (
        TraceId::from_hex(parent.trace),
        SpanId::from_hex(parent.span),
    ) else {
        return;
    };
    let state = TraceState::default();
    let remote = SpanContext::new(trace, id, TraceFlags::SAMPLED, true, state);
    let context = opentelemetry::Context::new().with_remote_span_context(remote);
    // A span that nobody listens to has no parent.
    let _ = span.set_parent(context);
}
