//! What the kubelet and Prometheus ask: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};

use crate::metrics::{Metrics, PolicySeries};

/// The answers of a probe: fine, or what is wrong.
pub type Probe = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the endpoints answer from.
#[derive(Clone)]
pub struct Endpoints {
    /// Red when the process should be started anew.
    pub healthy: Probe,
    /// Red until the caches are complete.
    pub ready: Probe,
    pub metrics: Arc<Metrics>,
    /// Brings gauges up to date before they are read; returns those of the policies.
    pub refresh: Arc<dyn Fn() -> PolicySeries + Send + Sync>,
}

/// The routes.
pub fn router(endpoints: Endpoints) -> Router {
    let answer = |probe: &Probe| match probe() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    Router::new()
        .route(
            "/healthz",
            get(move |State(e): State<Endpoints>| async move { answer(&e.healthy) }),
        )
        .route(
            "/readyz",
            get(move |State(e): State<Endpoints>| async move { answer(&e.ready) }),
        )
        .route(
            "/metrics",
            get(|State(e): State<Endpoints>| async move {
                let policies = (e.refresh)();
                (
                    [("content-type", "text/plain; version=0.0.4")],
                    e.metrics.render(&policies),
                )
            }),
        )
        .with_state(endpoints)
}
