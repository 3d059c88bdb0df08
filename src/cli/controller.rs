//! `autounseal controller`: runs the operator.

use tokio::signal::unix::{SignalKind, signal};
#[cfg(feature = "otlp")]
use tracing_subscriber::Layer;

use super::{Done, Failure};
#[cfg(feature = "otlp")]
use crate::telemetry::traces::Traces;
use crate::{
    controller, provider,
    settings::{ControllerArgs, Settings},
    telemetry::logs,
};

/// Runs until SIGTERM or SIGINT, then finishes what was begun; a second signal ends at once.
pub async fn run(args: &ControllerArgs) -> Done {
    let misuse = |error: &dyn std::error::Error| Failure::Misuse(error.to_string());
    #[cfg(feature = "otlp")]
    let traces = match &args.otlp_endpoint {
        Some(endpoint) => Some(Traces::to(endpoint).map_err(|error| misuse(&error))?),
        None => None,
    };
    #[cfg(feature = "otlp")]
    let layer = traces.as_ref().map(|traces| traces.layer().boxed());
    #[cfg(not(feature = "otlp"))]
    let layer = None;
    logs::start(args.log_format, args.log_level, layer);
    logs::quiet_panics();
    let environment = provider::Environment::read();
    let settings = Settings::from_args(args, |patterns| environment.endpoints(patterns))
        .map_err(|error| misuse(&error))?;
    let clouds = provider::Settings::new(
        settings.binding_domain.clone(),
        settings.endpoints.clone(),
        environment.clone(),
    )
    .paced(args.kms_requests_per_second);
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| misuse(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| misuse(&error))?;
    let (told, stop) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        next().await;
        tracing::info!("stopping: what was begun is finished");
        let _ = told.send(());
        next().await;
        std::process::exit(1);
    });
    let stop = async move {
        let _ = stop.await;
    };
    let ended = controller::run(settings, clouds, stop).await;
    #[cfg(feature = "otlp")]
    if let Some(traces) = traces {
        traces.end().await;
    }
    ended.map_err(|error| Failure::No(error.to_string()))
}
