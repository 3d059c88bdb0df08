//! The domain: values and decisions. No client, no runtime, no cloud SDK, no clock.

pub mod aws;
pub mod ciphertext;
pub mod endpoint;
pub mod fault;
pub mod key_bytes;

pub use ciphertext::Ciphertext;
pub use fault::{Fault, FaultKind, backoff};
pub use key_bytes::KeyBytes;
