//! Integration tests across the workspace, one module per question.
#![allow(clippy::unwrap_used)] // the whole binary is tests

#[allow(dead_code)] // shared with the tests of the attacks
mod golden;
#[allow(dead_code)] // the attacks' own tests need all of it
#[path = "../../crates/theriac-attacks/tests/golden/reference.rs"]
mod reference;
mod support;

mod attacks;
mod bad_input;
mod broken;
mod defences;
mod determinism;
mod epochwise;
mod golden_gradients;
mod golden_models;
mod layers;
mod networks;
mod resume;
