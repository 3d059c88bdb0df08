//! `autounseal controller`: runs the operator.

use tokio::signal::unix::{SignalKind, signal};

use super::{Done, Failure};
use crate::{
    controller,
    provider::aws,
    settings::{ControllerArgs, Settings},
    telemetry::logs,
};

/// Runs until SIGTERM or SIGINT, then finishes what was begun; a second signal ends at once.
pub async fn run(args: &ControllerArgs) -> Done {
    logs::start(args.log_format, args.log_level);
    logs::quiet_panics();
    let misuse = |error: &dyn std::error::Error| Failure::Misuse(error.to_string());
    let settings =
        Settings::from_args(args, aws::Aws::environment_endpoints()).map_err(|error| misuse(&error))?;
    let aws = aws::Settings::from_environment(
        settings.binding_domain.clone(),
        settings.endpoints.patterns.clone(),
    );
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
    controller::run(settings, aws, stop)
        .await
        .map_err(|error| Failure::No(error.to_string()))
}
