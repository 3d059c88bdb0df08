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
mod chaos;
mod chart;
mod chart_values;
mod cli;
mod crash;
mod doctor;
mod drift;
mod endpoints;
mod failover;
mod fairness;
mod generated;
mod gitops;
mod guards;
mod hardening;
mod imds;
mod imported;
mod initialize;
mod initialize_attacks;
mod initialize_crash;
mod leader;
mod main_job;
mod managed_faults;
mod managed_keys;
mod moto_auth;
mod native_servers;
mod oci_cli;
mod oci_credentials;
mod oci_faults;
mod oci_guard;
mod oci_identities;
mod oci_interop;
mod oci_over_time;
mod oci_schema;
mod oci_secrecy;
mod oci_thrift;
mod operations;
mod operator_identity;
mod own_identity;
mod ownership;
mod pictured;
mod pods;
mod preflight;
mod rights;
mod rotate;
mod rotate_crash;
mod rotate_raft;
mod rotation_pods;
mod scans;
mod schema;
mod scripted_servers;
mod secrecy;
mod snooping;
mod stanzas;
mod store_binding;
mod store_cli;
mod store_crash;
mod store_faults;
mod store_loss;
mod support;
mod telemetry;
mod tenancy;
mod thrift;
mod unseal;
mod unseal_attacks;
mod unseal_bad_servers;
mod unseal_import;
mod unseal_migrate;
mod unseal_raft;
mod unseal_triggers;
