//! Evaluations of golden networks, whole and masked.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the whole binary is tests

#[allow(dead_code)] // the tests across crates need all of it
#[path = "../../../../tests/it/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "../../../../tests/it/golden_models.rs"]
mod golden_models;

mod setup;
mod store;
mod verdict;
