#![doc = include_str!("../README.md")]

mod activation;
mod config;
mod conv;
mod cpu;
mod graph;
mod linear;
mod loss;
pub mod network;
mod norm;
mod optim;
mod pool;
pub mod portable;

pub use activation::relu;
pub use config::{ConvConfig, PoolConfig};
pub use conv::conv2d;
pub use graph::vjp;
pub use linear::linear;
pub use loss::{cross_entropy, cross_entropy_soft};
pub use norm::{batch_norm_eval, batch_norm_train};
pub use optim::{adam_step, sgd_step};
pub use pool::{avg_pool2d, max_pool2d};
pub use theriac_kernels::{Adam, Sgd, normal};
