//! The domain: values and decisions. No client, no runtime, no cloud SDK, no clock.

pub mod aws;
pub mod check_value;
pub mod ciphertext;
pub mod consumer_id;
pub mod endpoint;
pub mod entry;
pub mod fault;
pub mod key_bytes;
pub mod template;

pub use ciphertext::Ciphertext;
pub use fault::{Fault, FaultKind, backoff};
pub use key_bytes::KeyBytes;
