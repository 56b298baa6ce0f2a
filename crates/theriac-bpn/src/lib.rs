#![doc = include_str!("../README.md")]

mod bpn;
mod layers;
mod pgd;
mod rule;

pub use bpn::{BiasInit, BiasOpt, BiasRule, Bpn, Sign, Which};
pub use layers::Beneficial;
pub use pgd::BiasPgd;
pub use rule::SignStep;
