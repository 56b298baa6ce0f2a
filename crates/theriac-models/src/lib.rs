#![doc = include_str!("../README.md")]

mod advertorch;
mod atda_cnn;
mod lenet;
mod resnet;
mod resnet50;
mod spec;

pub use advertorch::advertorch_lenet;
pub use atda_cnn::atda_cnn;
pub use lenet::lenet;
pub use resnet::{resnet_v1, resnet18, resnet18_fc3};
pub use resnet50::resnet50;
pub use spec::Spec;
