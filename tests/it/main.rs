//! Integration tests across the workspace, one module per question.
#![allow(clippy::unwrap_used)] // the whole binary is tests

mod golden;
mod support;

mod bad_input;
mod broken;
mod defences;
mod determinism;
mod epochwise;
mod golden_attacks;
mod golden_gradients;
mod golden_models;
mod layers;
mod networks;
mod resume;
