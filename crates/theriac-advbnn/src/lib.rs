#![doc = include_str!("../README.md")]

mod layers;
mod objective;

pub use layers::Posterior;
pub use objective::{AdvBnn, Bayesian};
