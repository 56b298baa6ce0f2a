//! Small graphs against closed forms; gradients against central differences.
#![allow(clippy::unwrap_used)] // the whole binary is tests

mod errors;
mod pointwise;
mod shapes;
mod support;
mod windows;
