//! Logs and spans: human or JSON on standard error, OTLP if asked for.

mod redaction;

use anyhow::Context;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogFormat;

/// What has to live until the end, so that the last spans leave.
pub struct Guard {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        #[cfg(feature = "otlp")]
        if let Some(provider) = self.provider.take()
            && let Err(e) = provider.shutdown()
        {
            tracing::warn!(error = %e, "the last spans could not be exported");
        }
    }
}

/// Sets tracing up for the process.
///
/// # Errors
/// When the filter cannot be read, the exporter cannot be built, or tracing was set up before.
pub fn init(filter: &str, format: LogFormat, otlp: Option<&str>) -> anyhow::Result<Guard> {
    // The client writes whole objects into the log that it cannot read; who reads them says so, in a
    // line. What the filter says of it by name goes before.
    let quiet = format!("kube_client=error,{filter}");
    let filter = EnvFilter::try_new(quiet).with_context(|| {
        format!("--log {filter:?} is not a filter such as info or run_invoker=debug")
    })?;
    let logs = tracing_subscriber::fmt::layer().with_writer(redaction::Redacting);
    let logs = match format {
        LogFormat::Text => logs.with_target(false).boxed(),
        LogFormat::Json => logs
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    let registry = tracing_subscriber::registry().with(logs.with_filter(filter));
    #[cfg(feature = "otlp")]
    {
        let provider = otlp.map(exporter).transpose()?;
        let spans = provider.as_ref().map(|p| {
            use opentelemetry::trace::TracerProvider as _;
            use tracing_subscriber::filter::{FilterExt as _, filter_fn};
            tracing_opentelemetry::layer()
                .with_tracer(p.tracer("run-invoker"))
                // Events quote what others said, and may name members; the log is their place.
                .with_filter(EnvFilter::new("run_invoker=info").and(filter_fn(|m| m.is_span())))
        });
        registry.with(spans).try_init()?;
        Ok(Guard { provider })
    }
    #[cfg(not(feature = "otlp"))]
    {
        anyhow::ensure!(
            otlp.is_none(),
            "--otlp-endpoint needs a binary built with the feature otlp"
        );
        registry.try_init()?;
        Ok(Guard {})
    }
}

#[cfg(feature = "otlp")]
fn exporter(endpoint: &str) -> anyhow::Result<opentelemetry_sdk::trace::SdkTracerProvider> {
    use opentelemetry_otlp::{SpanExporter, WithExportConfig};
    let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(url)
        .build()
        .context("building the OTLP exporter")?;
    let resource = opentelemetry_sdk::Resource::builder()
        .with_service_name("run-invoker")
        .build();
    Ok(opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}
