//! Logs, metrics, and the server that shows them. No module of the domain is used here.

pub mod logs;
pub mod metrics;
pub mod objects;
pub mod server;
#[cfg(feature = "otlp")]
pub mod traces;
