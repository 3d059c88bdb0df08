//! Formats of wrapped keys. Pure: bytes in, bytes out; what a key is wrapped *with* lives in `provider`.

pub mod blob_info;

pub use blob_info::{BlobInfo, KeyInfo};
