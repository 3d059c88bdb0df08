//! The domain: values and decisions. No client, no runtime, no cloud SDK, no clock.
//!
//! [`model`] is the resource, parsed. [`observed`] is the world, seen. [`checks`] says what stands in the
//! way, [`plan`] what to do, [`outcome`] what came of it, [`status`] what the user is told.

pub mod aws;
pub mod check_value;
pub mod checks;
pub mod ciphertext;
pub mod consumer_id;
pub mod digest;
pub mod endpoint;
pub mod entry;
pub mod fault;
pub mod key_bytes;
pub mod managed;
pub mod model;
pub mod native;
pub mod observed;
pub mod oci;
pub mod outcome;
pub mod plan;
pub mod pods;
pub mod rollout;
pub mod stanza;
pub mod static_credentials;
pub mod status;
pub mod store;
pub mod template;
pub mod unseal;

#[cfg(test)]
mod tests;

pub use ciphertext::Ciphertext;
pub use fault::{Fault, FaultKind, KMS_REQUESTS_PER_SECOND, backoff};
pub use key_bytes::KeyBytes;
pub use static_credentials::StaticCredentials;
