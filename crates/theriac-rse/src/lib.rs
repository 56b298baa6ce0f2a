#![doc = include_str!("../README.md")]

mod layers;

pub use layers::{NoisyConvs, Rse};
