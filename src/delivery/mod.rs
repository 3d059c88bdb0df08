//! What the target Secret holds: entries and keys in, data and manifest out. Pure; the only keeper of delivered bytes.

pub mod content;
pub mod manifest;

pub use content::{Content, DeliveredKey, render};
pub use manifest::manifest;
