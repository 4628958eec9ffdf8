//! /healthz, /readyz, /metrics; and being asked to end.

use crate::metrics::Metrics;
use axum::Router;
use axum::routing::get;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves until the process ends. Being able to answer is being healthy: everything runs on one thread.
pub async fn serve(address: SocketAddr, metrics: Metrics) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .route("/metrics", get(move || async move { metrics.text() }));
    axum::serve(TcpListener::bind(address).await?, router).await?;
    Ok(())
}

/// SIGTERM or SIGINT.
pub async fn asked_to_end() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}
