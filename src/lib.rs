//! The map of the house.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod delivery;
pub mod seal;
pub mod yaml;
