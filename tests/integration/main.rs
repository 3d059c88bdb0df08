//! The operator against a real control plane, KMS and STS:
//! `cargo xtask cluster -- cargo test --features integration --test integration`.
//!
//! One file a flow; every test has a namespace, and mostly an operator process, of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on should say so and end"
)]

mod main_job;
mod scripted_servers;
mod support;
