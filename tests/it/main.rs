//! Integration tests across the workspace, one module per question.
#![allow(clippy::unwrap_used)] // the whole binary is tests

// What `cargo xtask new defence` writes, under the name that it has there.
extern crate self as theriac_skeleton;
pub(crate) use skeleton::Skeleton;

#[allow(dead_code)] // shared with the tests of the attacks
mod golden;
#[allow(dead_code)] // the attacks' own tests need all of it
#[path = "../../crates/theriac-attacks/tests/golden/reference.rs"]
mod reference;
mod support;

mod attacks;
mod bad_input;
mod bpn;
mod broken;
mod defences;
mod determinism;
mod epochwise;
mod false_defences;
mod golden_gradients;
mod golden_models;
mod imagenet;
mod inference;
mod layers;
mod networks;
mod noise;
mod resume;
mod skeleton;
