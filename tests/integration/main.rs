//! The operator against a real control plane, KMS and STS:
//! `cargo xtask cluster -- cargo test --features integration --test integration`.
//!
//! One file a flow; every test has a namespace, and mostly an operator process, of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that cannot go on should say so and end"
)]

mod bad_input;
mod cli;
mod crash;
mod drift;
mod endpoints;
mod main_job;
mod moto_auth;
mod oci_cli;
mod oci_interop;
mod operator_identity;
mod own_identity;
mod ownership;
mod pods;
mod schema;
mod scripted_servers;
mod secrecy;
mod support;
mod telemetry;
mod thrift;
