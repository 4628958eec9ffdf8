//! Health endpoints and metrics over HTTP: `/healthz` (the process answers), `/readyz` (so does a standby: it is ready to
//! take over), `/metrics`.

use crate::metrics::Metrics;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kube::runtime::reflector::Store;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;
use vse_crds::VSE;

/// What Prometheus expects of the text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The VSEs, once this process leads and watches them.
pub type LateStore = Arc<OnceLock<Store<VSE>>>;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, metrics: Metrics, vses: LateStore) -> std::io::Result<()> {
    let ok = get(|| async { "ok" });
    let router = Router::new()
        .route("/healthz", ok.clone())
        .route("/readyz", ok)
        .route("/metrics", get(move || std::future::ready(scrape(&metrics, &vses))));
    axum::serve(listener, router).await
}

fn scrape(metrics: &Metrics, vses: &LateStore) -> Response {
    let mut phases = BTreeMap::new();
    let seen = vses.get().map(Store::state).unwrap_or_default();
    for vse in seen {
        let phase = vse.status.as_ref().and_then(|status| status.phase);
        let name = phase.map_or("Unknown".to_owned(), |phase| format!("{phase:?}"));
        *phases.entry(name).or_default() += 1;
    }
    match metrics.text(phases) {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
