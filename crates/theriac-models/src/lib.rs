#![doc = include_str!("../README.md")]

mod advertorch;
mod atda_cnn;
mod deit;
mod efficientnet;
mod lenet;
mod pad;
mod resnet;
mod resnext;
mod spec;
mod squeezenet;
mod vgg;
mod wide_resnet;

pub use advertorch::advertorch_lenet;
pub use atda_cnn::atda_cnn;
pub use deit::Transformer;
pub use efficientnet::efficientnet_lite0;
pub use lenet::lenet;
pub use resnet::{
    bottleneck_resnet, resnet_v1, resnet18, resnet18_cifar, resnet18_fc3, resnet34, resnet50,
    resnet50_cifar,
};
pub use resnext::resnext29;
pub use spec::Spec;
pub use squeezenet::squeezenet;
pub use vgg::vgg16;
pub use wide_resnet::wide_resnet;
