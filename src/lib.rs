//! The map of the house.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod cli;
pub mod delivery;
pub mod provider;
pub mod seal;
pub mod wrapped;
pub mod yaml;
