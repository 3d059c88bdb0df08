//! auto-unseal-operator: unwraps root keys with cloud KMS keys and puts them where workloads need them.
//!
//! The map of the house:
//!
//! - [`api`]: the wire. What users write and read; types only.
//! - [`seal`]: the domain. A SealConfig parsed, the world observed, what stands in the way, what to do, what
//!   to tell. Pure: no client, no cloud, no clock.
//! - [`wrapped`]: the formats of wrapped keys.
//! - [`provider`]: the clouds' KMSes, one folder a cloud.
//! - [`stanza`]: configuration of Vault, OpenBao and Boundary as text. Pure.
//! - [`delivery`]: what the target Secret holds.
//! - [`servers`]: Vault and OpenBao, spoken to over one verified connection.
//! - [`controller`]: the only place that joins everything: observe → parse → check → plan → apply → status.
//! - [`lease`]: which of several replicas acts.
//! - [`kube_ext`], [`telemetry`], [`settings`], [`yaml`]: the edges.
//! - [`cli`]: the command line, one file a command.
//!
//! Key bytes exist only inside `controller::apply`, `controller::unseal`, `servers`, `delivery` and the command line's `wrap` and `unwrap`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod cli;
pub mod controller;
pub mod delivery;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod kube_ext;
pub mod lease;
pub mod provider;
pub mod seal;
pub mod servers;
pub mod settings;
pub mod stanza;
pub mod telemetry;
pub mod wrapped;
pub mod yaml;
