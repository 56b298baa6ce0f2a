//! Attacks against public implementations, by the files of `tests/golden` at the top.
#![allow(clippy::unwrap_used)] // the whole binary is tests

#[allow(dead_code)] // the tests across crates need all of it
#[path = "../../../../tests/it/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "../../../../tests/it/golden_models.rs"]
mod golden_models;
mod reference;
mod trace;

mod apgd;
mod autoattack;
mod fab;
mod facts;
mod minimal;
mod random;
mod steps;
