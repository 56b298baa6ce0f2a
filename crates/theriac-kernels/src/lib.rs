#![doc = include_str!("../README.md")]

mod activation;
mod conv;
mod error;
mod gemm;
mod lanes;
mod linear;
mod loss;
mod norm;
mod optim;
mod parallel;
mod pool;
mod real;
mod shifted;
#[cfg(test)]
mod testing;

pub use activation::{relu, relu_grad};
pub use conv::{Conv, conv2d, conv2d_bias_grad, conv2d_input_grad, conv2d_weight_grad};
pub use error::{Error, Result};
pub use lanes::network;
pub use lanes::normal::{Key, normal};
#[doc(hidden)]
pub use lanes::peak::fused_multiply_adds;
pub use linear::{linear, linear_bias_grad, linear_input_grad, linear_weight_grad};
pub use loss::{cross_entropy, cross_entropy_grad, cross_entropy_soft, cross_entropy_soft_grad};
pub use norm::{BatchNorm, BatchNormGrads, Statistics, update_running};
pub use optim::{Adam, Sgd, adam_step, sgd_step};
pub use parallel::CHUNK;
pub use pool::{Pool, avg_pool2d, avg_pool2d_grad, max_pool2d, max_pool2d_grad};
pub use real::Real;
