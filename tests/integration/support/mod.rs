//! What all flows stand on.

#![allow(dead_code, reason = "every helper serves some flow, none serves all")]

pub mod apiserver;
pub mod blob;
pub mod custodian;
pub mod door;
pub mod drill;
pub mod fleet;
pub mod helm;
pub mod hostile;
pub mod http;
pub mod kms;
pub mod knife;
pub mod localstack;
pub mod moto;
pub mod needle;
pub mod netns;
pub mod oci;
pub mod oci_caller;
pub mod oci_scene;
pub mod operator;
pub mod pki;
pub mod plane;
pub mod raft;
pub mod scene;
pub mod server;
pub mod stage;
pub mod sts;
pub mod tls;
pub mod vault;

/// The operator's binary: what `cargo xtask cluster` built, else what cargo built for this test.
pub fn binary() -> String {
    std::env::var("AUTOUNSEAL_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_autounseal").to_owned())
}
