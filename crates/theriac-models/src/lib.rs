#![doc = include_str!("../README.md")]

mod advertorch;
mod atda_cnn;
mod lenet;
mod spec;

pub use advertorch::AdvertorchLenet;
pub use atda_cnn::AtdaCnn;
pub use lenet::Lenet;
pub use spec::Spec;
