#![doc = include_str!("../README.md")]

mod layers;
mod pni;

pub use layers::WeightNoise;
pub use pni::{Granularity, Pni};
