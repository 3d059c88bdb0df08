//! Log lines and what a panic may say (security rule S13).

use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::settings::{LogFormat, LogLevel};

/// Starts logging. Our own lines from `level` on; libraries never below `warn`, for at lower levels some of them
/// print requests. `traces` takes spans, which log lines do not show.
pub fn start(format: LogFormat, level: LogLevel, traces: Option<Box<dyn Layer<Registry> + Send + Sync>>) {
    let own = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let libraries = if level == LogLevel::Error { "error" } else { "warn" };
    // aws_config prints what STS said, at any level.
    let filter = EnvFilter::new(format!("{libraries},aws_config=off,autounseal={own}"));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => {
            let json = lines.json().flatten_event(true);
            json.with_current_span(false).with_span_list(false).boxed()
        }
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(traces)
        .with(lines.with_filter(filter))
        .init();
}

/// A panic tells where it was, never what it said: its text may hold anything.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, ToString::to_string);
        tracing::error!(place, "the program has a fault at this place; please report it");
    }));
}
