//! `autounseal controller`: runs the operator.

use tokio::signal::unix::{SignalKind, signal};

use super::{Done, Failure};
use crate::{
    controller, provider,
    settings::{ControllerArgs, Settings},
    telemetry::logs,
};

/// Runs until SIGTERM or SIGINT, then finishes what was begun; a second signal ends at once.
pub async fn run(args: &ControllerArgs) -> Done {
    logs::start(args.log_format, args.log_level);
    logs::quiet_panics();
    let misuse = |error: &dyn std::error::Error| Failure::Misuse(error.to_string());
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
    controller::run(settings, clouds, stop)
        .await
        .map_err(|error| Failure::No(error.to_string()))
}
