//! `/livez`, `/readyz`, `/metrics`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, http::StatusCode, routing::get};

use super::metrics::Metrics;

/// Readiness: every part that was announced has reported.
#[derive(Clone, Default)]
pub struct Health {
    announced: Arc<AtomicUsize>,
    ready: Arc<AtomicUsize>,
}

/// One part of readiness.
pub struct Part(Health);

impl Health {
    /// Announces a part that has to become ready.
    pub fn part(&self) -> Part {
        self.announced.fetch_add(1, Ordering::SeqCst);
        Part(self.clone())
    }

    fn is_ready(&self) -> bool {
        let announced = self.announced.load(Ordering::SeqCst);
        announced > 0 && self.ready.load(Ordering::SeqCst) >= announced
    }
}

impl Part {
    /// This part is ready.
    pub fn ready(self) {
        self.0.ready.fetch_add(1, Ordering::SeqCst);
    }
}

/// Serves in the background.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<Health> {
    let health = Health::default();
    let asked = health.clone();
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                if asked.is_ready() {
                    (StatusCode::OK, "ok")
                } else {
                    (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the first lists are not complete",
                    )
                }
            }),
        )
        .route(
            "/metrics",
            get(move || async move {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(axum::http::header::CONTENT_TYPE, kind)], metrics.text())
            }),
        );
    let listener = tokio::net::TcpListener::bind(address).await?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving /metrics, /livez and /readyz");
    }
    tokio::spawn(async move {
        if axum::serve(listener, router).await.is_err() {
            tracing::error!("the metrics server has ended");
        }
    });
    Ok(health)
}
