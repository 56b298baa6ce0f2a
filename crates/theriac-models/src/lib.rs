#![doc = include_str!("../README.md")]

mod advertorch;
mod atda_cnn;
mod lenet;
mod spec;

pub use advertorch::advertorch_lenet;
pub use atda_cnn::atda_cnn;
pub use lenet::lenet;
pub use spec::Spec;
